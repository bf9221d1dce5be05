//! SMMUs and streams in ACPI's IO Remapping Table.
//!
//! By *IO Remapping Table*, Arm DEN0049, issues A to E.f. All numbers are little-endian. A table is a header and an array of nodes; a node may have ID
//! mappings, each of which sends a range of IDs to another node. Requester IDs of a root complex, and the IDs of a named component, become
//! StreamIDs where a mapping goes to an SMMUv3: one step, so that no chain of nodes is ever followed. (An SMMU's own mappings, from StreamIDs to the
//! DeviceIDs of an ITS, are not looked at.)
//!
//! Not read: nodes of the types ITS group, SMMUv1/v2 and PMCG, and of types that are not known.

use core::ops::Range;
use core::str;

use crate::pci::Rid;
use crate::{Interrupt, Interrupts, Model, REGISTER_PAGES, SmmuDescription, Stream, Trigger};

/// What is wrong with a table, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("IORT, offset {offset:#x}: {problem}")]
pub struct Error {
    /// Bytes from the start of the table.
    pub offset: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The table, or what the offset is in, ends before something that must be there.
    #[error("{needs} bytes are needed, there are {has}")]
    Short {
        /// Bytes needed.
        needs: u64,
        /// Bytes there are.
        has: usize,
    },
    /// It does not begin with `IORT`.
    #[error("the signature is not IORT")]
    Signature,
    /// The bytes do not add up to 0.
    #[error("the bytes add up to {0:#04x} instead of 0")]
    Checksum(u8),
    /// Revisions 1 and 2 (issues E and E.a) have known faults; 3 replaced them.
    #[error("revision {0} has known faults")]
    Revision(u8),
    /// A node begins in the table's header.
    #[error("the nodes begin at {0:#x}, in the header")]
    NodesInHeader(u32),
    /// A node is shorter than its type needs.
    #[error("a node of type {kind} has {has} bytes and needs {needs}")]
    NodeLength {
        /// Its type.
        kind: u8,
        /// The bytes that a node of its type has at least.
        needs: usize,
        /// Its length.
        has: usize,
    },
    /// A mapping, or a range of memory, begins in the fixed part of its node.
    #[error("an array begins at {0:#x} of the node, in its fixed part")]
    ArrayInNode(u32),
    /// No node begins at the offset that a mapping names.
    #[error("no node begins at {0:#x}")]
    NoNode(u32),
    /// A mapping sends IDs to a node that takes none.
    #[error("the mapping goes to a node of type {0}")]
    Target(u8),
    /// A mapping's range, or a range of memory, goes beyond the largest number.
    #[error("the range of {count:#x} from {first:#x} goes beyond the largest number")]
    Overflow {
        /// Where it begins.
        first: u64,
        /// How many it has.
        count: u64,
    },
    /// A root complex has a mapping that is not by ID.
    #[error("a root complex has a single mapping")]
    SingleMapping,
    /// Two mappings disagree on an ID.
    #[error("the mapping and another send the ID {0:#x} to different places")]
    Ambiguous(u32),
    /// No device's interrupt has this number.
    #[error("{0} is no interrupt of a device")]
    Interrupt(u32),
    /// A name has no end, or is not UTF-8.
    #[error("the name has no end or is no text")]
    Name,
}

impl Problem {
    fn at(self, offset: usize) -> Error {
        Error { offset, problem: self }
    }
}

// The table's header (DEN0049, table 2).
const LENGTH: usize = 4;
const REVISION: usize = 8;
const NODE_COUNT: usize = 36;
const NODES: usize = 40;
const HEADER: usize = 48;

// A node's header (table 3).
const NODE_LENGTH: usize = 1;
const NODE_REVISION: usize = 3;
const MAPPING_COUNT: usize = 8;
const MAPPINGS: usize = 12;
const NODE_HEADER: usize = 16;

const ITS_GROUP: u8 = 0;
const NAMED_COMPONENT: u8 = 1;
const ROOT_COMPLEX: u8 = 2;
const SMMU_V1_V2: u8 = 3;
const SMMU_V3: u8 = 4;
const RESERVED_MEMORY: u8 = 6;

/// Where the name of a named component begins.
const NAME: usize = 29;
/// Bytes of an ID mapping (table 4).
const MAPPING: usize = 20;
/// Bytes of a memory range descriptor.
const MEMORY_RANGE: usize = 20;

/// The bytes that a node has at least before its arrays. What later revisions added at the end is not read.
fn fixed_part(kind: u8, revision: u8) -> usize {
    match (kind, revision) {
        // The name follows, at least its NUL.
        (NAMED_COMPONENT, _) => NAME + 1,
        (ROOT_COMPLEX, 0) => 32,
        (ROOT_COMPLEX, _) => 36,
        (SMMU_V3, 0) => 60,
        (SMMU_V3, _) => 68,
        (RESERVED_MEMORY, _) => 28,
        _ => NODE_HEADER,
    }
}

/// Bytes, and where in the table they begin.
#[derive(Debug, Clone, Copy)]
struct Bytes<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Bytes<'a> {
    /// `count` bytes from `at` on.
    fn part(&self, at: usize, count: u64) -> Result<Bytes<'a>, Error> {
        let has = self.bytes.len().saturating_sub(at);
        let whole = usize::try_from(count).ok().and_then(|count| self.bytes.get(at..)?.get(..count));
        let bytes = whole.ok_or(Problem::Short { needs: count, has }.at(self.offset.saturating_add(at)))?;
        Ok(Bytes { bytes, offset: self.offset + at })
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.part(at, N as u64)?.bytes);
        Ok(array)
    }

    fn u8(&self, at: usize) -> Result<u8, Error> {
        self.array(at).map(u8::from_le_bytes)
    }

    fn u16(&self, at: usize) -> Result<u16, Error> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, Error> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Error> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// `count` entries of `size` bytes each, from `at` on.
    fn entries(&self, at: u32, count: u32, size: usize) -> Result<impl Iterator<Item = Bytes<'a>> + use<'a>, Error> {
        let part = self.part(at as usize, u64::from(count) * size as u64)?;
        let entries = part.bytes.chunks_exact(size).enumerate();
        Ok(entries.map(move |(index, bytes)| Bytes { bytes, offset: part.offset + index * size }))
    }
}

/// An IORT.
#[derive(Debug, Clone, Copy)]
pub struct Iort<'a> {
    table: Bytes<'a>,
}

impl<'a> Iort<'a> {
    /// Checks the table at the start of `bytes`: its header and checksum, that all nodes and their mappings are inside, and that every mapping of a
    /// kind that is read here goes to a node which may take it. What comes after the table does not matter.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        let all = Bytes { bytes, offset: 0 };
        if all.part(0, HEADER as u64)?.bytes[..LENGTH] != *b"IORT" {
            return Err(Problem::Signature.at(0));
        }
        let table = all.part(0, all.u32(LENGTH)?.into())?;
        table.part(0, HEADER as u64)?;
        let sum = table.bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if sum != 0 {
            return Err(Problem::Checksum(sum).at(9));
        }
        let revision = table.u8(REVISION)?;
        if matches!(revision, 1 | 2) {
            return Err(Problem::Revision(revision).at(REVISION));
        }
        let first = table.u32(NODES)?;
        if (first as usize) < HEADER {
            return Err(Problem::NodesInHeader(first).at(NODES));
        }
        let iort = Iort { table };
        for node in iort.parse() {
            node?;
        }
        for node in iort.nodes() {
            if matches!(node.kind, NAMED_COMPONENT | ROOT_COMPLEX | RESERVED_MEMORY) {
                for mapping in node.mappings()? {
                    iort.follow(&mapping)?;
                }
            }
        }
        Ok(iort)
    }

    /// The SMMUv3s, in the order of the table.
    ///
    /// # Errors
    /// Of an item: [`Problem::Interrupt`], [`Problem::Overflow`].
    pub fn smmus(&self) -> impl Iterator<Item = Result<SmmuDescription, Error>> + use<'a> {
        self.nodes_of(SMMU_V3).enumerate().map(|(number, node)| describe(&node, number))
    }

    /// The PCI root complexes.
    ///
    /// # Errors
    /// Of an item: none that [`Iort::new`] lets pass.
    pub fn root_complexes(&self) -> impl Iterator<Item = Result<RootComplex, Error>> + use<'a> {
        self.nodes_of(ROOT_COMPLEX).map(|node| {
            Ok(RootComplex {
                segment: node.bytes.u32(28)?,
                ats: node.bytes.u32(24)? & 1 == 1,
                address_bits: if node.revision >= 1 { limit(node.bytes.u8(32)?) } else { None },
            })
        })
    }

    /// Where DMA with the requester ID `rid` of the PCI segment `segment` arrives. `None` if it passes no SMMUv3.
    ///
    /// Of a function behind bridges, [`device_streams`](crate::pci::device_streams) knows all requester IDs.
    ///
    /// Some firmware has written a mapping's number of IDs where the number *minus one* belongs, so that a mapping has one ID too
    /// many, with which the next begins. Such an ID is the next mapping's.
    ///
    /// # Errors
    /// [`Problem::Ambiguous`], [`Problem::SingleMapping`].
    pub fn stream_id(&self, segment: u32, rid: Rid) -> Result<Option<Stream>, Error> {
        let id = u32::from(rid.0);
        let mut found: Option<(Mapping, Option<Stream>)> = None;
        for node in self.nodes_of(ROOT_COMPLEX) {
            if node.bytes.u32(28)? != segment {
                continue;
            }
            for mapping in node.mappings()? {
                if mapping.single {
                    return Err(Problem::SingleMapping.at(mapping.offset));
                }
                if !(mapping.first..=mapping.last).contains(&id) {
                    continue;
                }
                let smmu = self.follow(&mapping)?;
                let stream = smmu.map(|smmu| Stream { smmu, id: mapping.output + (id - mapping.first) });
                found = match found {
                    Some((other, _)) if other.overruns(&mapping, id) => Some((mapping, stream)),
                    Some((other, stream)) if mapping.overruns(&other, id) => Some((other, stream)),
                    Some((_, other)) if other != stream => return Err(Problem::Ambiguous(id).at(mapping.offset)),
                    _ => Some((mapping, stream)),
                };
            }
        }
        Ok(found.and_then(|(_, stream)| stream))
    }

    /// The devices of ACPI's namespace that are in the table.
    ///
    /// # Errors
    /// Of an item: [`Problem::Name`].
    pub fn named_components(&self) -> impl Iterator<Item = Result<NamedComponent<'a>, Error>> + use<'a> {
        let iort = *self;
        self.nodes_of(NAMED_COMPONENT).map(move |node| {
            // It ends before the mappings begin.
            let end = match node.bytes.u32(MAPPING_COUNT)? {
                0 => node.bytes.bytes.len(),
                _ => node.bytes.u32(MAPPINGS)? as usize,
            };
            let rest = node.bytes.bytes.get(NAME..end).unwrap_or_default();
            let name = rest.split(|byte| *byte == 0).next().filter(|name| name.len() < rest.len());
            let name = name.and_then(|name| str::from_utf8(name).ok());
            Ok(NamedComponent {
                name: name.ok_or(Problem::Name.at(node.bytes.offset + NAME))?,
                address_bits: limit(node.bytes.u8(28)?),
                iort,
                node,
            })
        })
    }

    /// The memory that the firmware wants to stay mapped one to one for some devices: it, or they, go on using it.
    ///
    /// # Errors
    /// Of an item: none that [`Iort::new`] lets pass.
    pub fn reserved_memory(&self) -> impl Iterator<Item = Result<ReservedMemory<'a>, Error>> + use<'a> {
        let iort = *self;
        self.nodes_of(RESERVED_MEMORY)
            .map(move |node| Ok(ReservedMemory { remapping_permitted: node.bytes.u32(16)? & 1 == 1, iort, node }))
    }

    /// The number of the SMMUv3 that a mapping goes to, `None` if it goes past all of them.
    fn follow(&self, mapping: &Mapping) -> Result<Option<usize>, Error> {
        let mut smmus = 0;
        for node in self.nodes() {
            if node.bytes.offset == mapping.target as usize {
                return match node.kind {
                    SMMU_V3 => Ok(Some(smmus)),
                    ITS_GROUP | SMMU_V1_V2 => Ok(None),
                    kind => Err(Problem::Target(kind).at(mapping.offset)),
                };
            }
            smmus += usize::from(node.kind == SMMU_V3);
        }
        Err(Problem::NoNode(mapping.target).at(mapping.offset))
    }

    fn nodes_of(&self, kind: u8) -> impl Iterator<Item = Node<'a>> + use<'a> {
        self.nodes().filter(move |node| node.kind == kind)
    }

    /// The nodes, after [`Iort::new`] has seen that none is an error.
    fn nodes(&self) -> impl Iterator<Item = Node<'a>> + use<'a> {
        self.parse().map_while(Result::ok)
    }

    /// The nodes. What comes after an error means nothing. Each is at least 16 bytes long, so there is an end whatever their number is said to be.
    fn parse(&self) -> impl Iterator<Item = Result<Node<'a>, Error>> + use<'a> {
        let table = self.table;
        let mut next = table.u32(NODES).map_or(0, |first| first as usize);
        let mut left = table.u32(NODE_COUNT).unwrap_or(0);
        core::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let node = Node::parse(&table, next);
            next += node.as_ref().map_or(0, |node| node.bytes.bytes.len());
            Some(node)
        })
    }
}

/// A node whose length fits its type, and whose mappings are inside.
#[derive(Debug, Clone, Copy)]
struct Node<'a> {
    kind: u8,
    revision: u8,
    bytes: Bytes<'a>,
}

impl<'a> Node<'a> {
    fn parse(table: &Bytes<'a>, at: usize) -> Result<Self, Error> {
        let header = table.part(at, NODE_HEADER as u64)?;
        let (kind, revision) = (header.u8(0)?, header.u8(NODE_REVISION)?);
        let length = header.u16(NODE_LENGTH)?;
        let needs = fixed_part(kind, revision);
        if usize::from(length) < needs {
            return Err(Problem::NodeLength { kind, needs, has: length.into() }.at(at));
        }
        let node = Node { kind, revision, bytes: table.part(at, length.into())? };
        for mapping in node.raw_mappings()? {
            Mapping::parse(&mapping)?;
        }
        if kind == RESERVED_MEMORY {
            for range in node.raw_memory()? {
                memory(&range)?;
            }
        }
        Ok(node)
    }

    fn mappings(&self) -> Result<impl Iterator<Item = Mapping> + use<'a>, Error> {
        // `parse` has seen that none is an error.
        Ok(self.raw_mappings()?.filter_map(|mapping| Mapping::parse(&mapping).ok()))
    }

    fn raw_mappings(&self) -> Result<impl Iterator<Item = Bytes<'a>> + use<'a>, Error> {
        self.entries(MAPPINGS, MAPPING_COUNT, MAPPING)
    }

    fn raw_memory(&self) -> Result<impl Iterator<Item = Bytes<'a>> + use<'a>, Error> {
        self.entries(24, 20, MEMORY_RANGE)
    }

    /// The array whose offset and count are at `at` and `count`.
    fn entries(
        &self,
        at: usize,
        count: usize,
        size: usize,
    ) -> Result<impl Iterator<Item = Bytes<'a>> + use<'a>, Error> {
        let (first, count) = (self.bytes.u32(at)?, self.bytes.u32(count)?);
        if count > 0 && (first as usize) < fixed_part(self.kind, self.revision) {
            return Err(Problem::ArrayInNode(first).at(self.bytes.offset + at));
        }
        // Where there are no entries, the offset need not be one.
        self.bytes.entries(if count > 0 { first } else { 0 }, count, size)
    }
}

/// An ID mapping.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    /// Where it is in the table.
    offset: usize,
    first: u32,
    /// If `single`, as `first`.
    last: u32,
    output: u32,
    target: u32,
    /// The IDs of the device do not matter, there is one output.
    single: bool,
}

impl Mapping {
    fn parse(bytes: &Bytes) -> Result<Self, Error> {
        let [first, more, output, target] = [bytes.u32(0)?, bytes.u32(4)?, bytes.u32(8)?, bytes.u32(12)?];
        let mapping =
            Mapping { offset: bytes.offset, first, last: first, output, target, single: bytes.u32(16)? & 1 == 1 };
        if mapping.single {
            return Ok(mapping);
        }
        // The table has the number of IDs minus one.
        let overflow =
            |first: u32| Problem::Overflow { first: first.into(), count: u64::from(more) + 1 }.at(bytes.offset);
        let last = first.checked_add(more).ok_or(overflow(first))?;
        output.checked_add(more).ok_or(overflow(output))?;
        Ok(Mapping { last, ..mapping })
    }

    /// `id` is its last and the first of `next`.
    fn overruns(&self, next: &Mapping, id: u32) -> bool {
        self.last == id && next.first == id && self.first < id
    }
}

fn describe(node: &Node, number: usize) -> Result<SmmuDescription, Error> {
    let bytes = &node.bytes;
    let base = bytes.u64(16)?;
    base.checked_add(REGISTER_PAGES)
        .ok_or(Problem::Overflow { first: base, count: REGISTER_PAGES }.at(bytes.offset + 16))?;
    let flags = bytes.u32(24)?;
    // 0 is none. There are no triggers in the table: the SMMU's are edges (IHI 0070 §3.18).
    let interrupt = |at| match bytes.u32(at)? {
        0 => Ok(None),
        gsiv => match Interrupt::from_intid(gsiv, Trigger::EdgeRising) {
            Some(interrupt) => Ok(Some(interrupt)),
            None => Err(Problem::Interrupt(gsiv).at(bytes.offset + at)),
        },
    };
    let interrupts = Interrupts {
        event: interrupt(44)?,
        pri: interrupt(48)?,
        gerror: interrupt(52)?,
        sync: interrupt(56)?,
        combined: None,
    };
    let all_wired = [interrupts.event, interrupts.pri, interrupts.gerror, interrupts.sync].iter().all(Option::is_some);
    let indexed = match node.revision {
        0 => false,
        // The index counts where an interrupt is not wired.
        1..=4 => !all_wired,
        _ => flags >> 4 & 1 == 1,
    };
    Ok(SmmuDescription {
        number,
        base,
        size: REGISTER_PAGES,
        coherent: flags & 1 == 1,
        interrupts,
        msi: indexed && bytes.u32(64)? < bytes.u32(MAPPING_COUNT)?,
        proximity: if node.revision >= 1 && flags >> 3 & 1 == 1 { Some(bytes.u32(60)?) } else { None },
        model: match bytes.u32(40)? {
            0 => Model::Generic,
            1 => Model::Hi161x,
            2 => Model::Cn99xx,
            other => Model::Other(other),
        },
    })
}

/// A memory range descriptor: base and length.
fn memory(bytes: &Bytes) -> Result<Range<u64>, Error> {
    let (first, count) = (bytes.u64(0)?, bytes.u64(8)?);
    let end = first.checked_add(count).ok_or(Problem::Overflow { first, count }.at(bytes.offset))?;
    Ok(first..end)
}

/// An address size limit in bits. 0 is none.
fn limit(bits: u8) -> Option<u8> {
    (bits > 0).then_some(bits)
}

/// A PCI root complex, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootComplex {
    /// Its PCI segment. Several may have the same.
    pub segment: u32,
    /// It passes on ATS requests and translated addresses.
    pub ats: bool,
    /// So many bits of address it has.
    pub address_bits: Option<u8>,
}

/// A device of ACPI's namespace.
#[derive(Debug, Clone, Copy)]
pub struct NamedComponent<'a> {
    /// Its path in the namespace, such as `\_SB_.DMA0`.
    pub name: &'a str,
    /// It issues addresses of so many bits.
    pub address_bits: Option<u8>,
    iort: Iort<'a>,
    node: Node<'a>,
}

impl<'a> NamedComponent<'a> {
    /// Its streams, without those that pass no SMMUv3.
    pub fn streams(&self) -> impl Iterator<Item = StreamRange> + use<'a> {
        streams(self.iort, self.node)
    }
}

/// Memory that devices must go on reaching at its physical address (a *Reserved Memory Range* node).
#[derive(Debug, Clone, Copy)]
pub struct ReservedMemory<'a> {
    /// The operating system may move the mapping once it has taken the device over.
    pub remapping_permitted: bool,
    iort: Iort<'a>,
    node: Node<'a>,
}

impl<'a> ReservedMemory<'a> {
    /// Physical addresses.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + use<'a> {
        // `Node::parse` has seen that none is an error.
        self.node.raw_memory().into_iter().flatten().filter_map(|range| memory(&range).ok())
    }

    /// The streams that use it.
    pub fn streams(&self) -> impl Iterator<Item = StreamRange> + use<'a> {
        streams(self.iort, self.node)
    }
}

/// StreamIDs of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRange {
    /// The [number](SmmuDescription::number) of the SMMU.
    pub smmu: usize,
    /// The first StreamID.
    pub first: u32,
    /// The last StreamID.
    pub last: u32,
    /// Which of its IDs the device has to use for the first StreamID, the rest follow; `None` if it has but one.
    pub input: Option<u32>,
}

fn streams<'a>(iort: Iort<'a>, node: Node<'a>) -> impl Iterator<Item = StreamRange> + use<'a> {
    // `Iort::new` has seen that none is an error.
    node.mappings().into_iter().flatten().filter_map(move |mapping| {
        let smmu = iort.follow(&mapping).ok()??;
        let (first, count) = (mapping.output, mapping.last - mapping.first);
        let input = (!mapping.single).then_some(mapping.first);
        Some(StreamRange { smmu, first, last: first + count, input })
    })
}
