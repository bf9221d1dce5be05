//! What stands in a scenario file, apart from its steps. `docs/scenarios.md` explains it to those who write one.
//!
//! Names and whatever else may be wrong keep the place in the text where they stand, for the message.

use serde::Deserialize;
use smmuv3::arch::{self, AddrSize, Prot, Stage};
use smmuv3::{Geometry, Kind};
use smmuv3_model::{ModelSmmuConfig, Sabotage};
use toml::Spanned;

use super::step::Step;

/// A name, and where it stands.
pub(super) type Name = Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// For the report.
    pub name: String,
    #[serde(default = "one_smmu")]
    pub smmu: Vec<Smmu>,
    #[serde(default)]
    pub device: Vec<Device>,
    #[serde(default)]
    pub buffer: Vec<Buffer>,
    #[serde(default)]
    pub domain: Vec<Domain>,
    #[serde(default)]
    pub vsmmu: Vec<VSmmu>,
    #[serde(default)]
    pub nested: Vec<Nested>,
    pub steps: Vec<Spanned<Step>>,
    #[serde(default)]
    pub threads: Vec<Threads>,
}

/// An SMMU, where it differs from the model's default, which has everything.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Smmu {
    pub name: Name,
    pub stage1: Option<bool>,
    pub stage2: Option<bool>,
    pub ats: Option<bool>,
    pub asid16: Option<bool>,
    pub vmid16: Option<bool>,
    pub range_inv: Option<bool>,
    pub cd_two_level: Option<bool>,
    pub st_two_level: Option<bool>,
    pub sid_bits: Option<Spanned<u8>>,
    pub ssid_bits: Option<Spanned<u8>>,
    pub output_bits: Option<Spanned<u8>>,
    pub granules: Option<Vec<Granule>>,
    /// What the SMMU ignores, to see a scenario go wrong.
    #[serde(default)]
    pub sabotage: Vec<Sabotaged>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    pub name: Name,
    /// May be left out where there is one.
    pub smmu: Option<Name>,
    pub sids: Spanned<Vec<u32>>,
    #[serde(default)]
    pub ats: bool,
    #[serde(default)]
    pub pasid_bits: u8,
}

/// Pages for DMA. They are allocated when they are first used, and freed when the last mapping of them is gone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Buffer {
    pub name: Name,
    /// Of 4 KiB.
    #[serde(default = "one_page")]
    pub pages: Spanned<usize>,
    /// In bytes.
    #[serde(default = "one_page_s_bytes")]
    pub align: Spanned<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Domain {
    pub name: Name,
    pub kind: DomainKind,
    #[serde(default)]
    pub granule: Granule,
    pub input_bits: Option<u8>,
    pub output_bits: Option<Spanned<u8>>,
    #[serde(default)]
    pub cover: Cover,
}

/// How closely an invalidation follows its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub(super) enum Cover {
    #[default]
    Few,
    Exact,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DomainKind {
    S1,
    S2,
    /// A stage 1 table that the runner owns, for PASIDs.
    Sva,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VSmmu {
    pub name: Name,
    /// May be left out where there is one.
    pub smmu: Option<Name>,
    pub parent: Name,
    /// The guest's StreamIDs.
    #[serde(default)]
    pub streams: Vec<GuestStream>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuestStream {
    pub sid: u32,
    pub device: Name,
}

/// A domain that is a guest's STE.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nested {
    pub name: Name,
    pub vsmmu: Name,
    pub ste: Spanned<GuestSte>,
    /// The ASID in the guest's CD.
    #[serde(default = "one_asid")]
    pub asid: u16,
    /// The guest sets `EATS`.
    #[serde(default)]
    pub ats: bool,
    /// The intermediate address from which on the runner puts the guest's CD and tables.
    #[serde(default = "guest_tables")]
    pub tables: Spanned<u64>,
    /// What the guest's table maps at first.
    #[serde(default)]
    pub mappings: Vec<GuestMapping>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum GuestSte {
    Abort,
    Bypass,
    Stage1,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuestMapping {
    pub iova: Spanned<u64>,
    pub ipa: Spanned<u64>,
    #[serde(default)]
    pub access: AccessRights,
}

/// A list of steps that runs in a thread of its own, so many times.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Threads {
    /// What `run_threads` starts together.
    pub group: Name,
    #[serde(default = "once")]
    pub repeat: u64,
    pub steps: Vec<Spanned<Step>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(super) enum Granule {
    #[default]
    #[serde(rename = "4k")]
    K4,
    #[serde(rename = "16k")]
    K16,
    #[serde(rename = "64k")]
    K64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AccessRights {
    R,
    #[default]
    Rw,
}

/// The kinds of entries of an invalidation array.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum OwedKind {
    S1Asid,
    S2Vmid,
    S2VmidS1Clear,
    Ats,
    AtsFull,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) enum Sabotaged {
    IgnoreTlbiByAddress,
    IgnoreTlbiByTag,
    TreatTlbiAsLeaf,
    IgnoreNhAll,
    IgnoreCfgi,
    IgnoreSync,
    IgnoreInnerSync,
    IgnoreAtcInv,
}

fn one_smmu() -> Vec<Smmu> {
    vec![Smmu {
        name: Spanned::new(0..0, "smmu".to_owned()),
        stage1: None,
        stage2: None,
        ats: None,
        asid16: None,
        vmid16: None,
        range_inv: None,
        cd_two_level: None,
        st_two_level: None,
        sid_bits: None,
        ssid_bits: None,
        output_bits: None,
        granules: None,
        sabotage: Vec::new(),
    }]
}

fn one_page() -> Spanned<usize> {
    Spanned::new(0..0, 1)
}

fn one_page_s_bytes() -> Spanned<usize> {
    Spanned::new(0..0, 0x1000)
}

fn one_asid() -> u16 {
    1
}

fn guest_tables() -> Spanned<u64> {
    Spanned::new(0..0, 0x4000_0000)
}

fn once() -> u64 {
    1
}

/// The sizes of addresses that can be coded: bits, in the order of the codes.
pub(super) const ADDRESS_BITS: [u8; 6] = [32, 36, 40, 42, 44, 48];

/// From one of [`ADDRESS_BITS`].
fn address_size(bits: u8) -> AddrSize {
    let code = ADDRESS_BITS.iter().position(|&known| known == bits);
    AddrSize::from_code(code.unwrap_or(ADDRESS_BITS.len() - 1) as u8)
}

impl File {
    /// The index of the SMMU that is named, or of the only one.
    pub(super) fn smmu_index(&self, name: Option<&Name>) -> usize {
        let same = |name: &Name| self.smmu.iter().position(|smmu| smmu.name.get_ref() == name.get_ref());
        name.and_then(same).unwrap_or(0)
    }

    pub(super) fn buffer(&self, name: &str) -> Option<&Buffer> {
        self.buffer.iter().find(|buffer| buffer.name.get_ref() == name)
    }

    /// The pages of a buffer, of 4 KiB.
    pub(super) fn pages(&self, buffer: &Name) -> usize {
        self.buffer(buffer.get_ref()).map_or(1, |buffer| *buffer.pages.get_ref())
    }
}

impl Smmu {
    /// The model's default with what the file changes.
    pub(super) fn config(&self) -> ModelSmmuConfig {
        let base = ModelSmmuConfig::default();
        ModelSmmuConfig {
            stage1: self.stage1.unwrap_or(base.stage1),
            stage2: self.stage2.unwrap_or(base.stage2),
            ats: self.ats.unwrap_or(base.ats),
            asid16: self.asid16.unwrap_or(base.asid16),
            vmid16: self.vmid16.unwrap_or(base.vmid16),
            range_inv: self.range_inv.unwrap_or(base.range_inv),
            cd_two_level: self.cd_two_level.unwrap_or(base.cd_two_level),
            st_two_level: self.st_two_level.unwrap_or(base.st_two_level),
            sid_bits: self.sid_bits.as_ref().map_or(base.sid_bits, |bits| *bits.get_ref()),
            ssid_bits: self.ssid_bits.as_ref().map_or(base.ssid_bits, |bits| *bits.get_ref()),
            oas: self.output_bits.as_ref().map_or(base.oas, |bits| address_size(*bits.get_ref())),
            granules: self.granules.as_ref().map_or(base.granules, |granules| {
                [Granule::K4, Granule::K16, Granule::K64].map(|granule| granules.contains(&granule))
            }),
            ..base
        }
    }
}

impl Domain {
    pub(super) fn geometry(&self) -> Geometry {
        let base = Geometry::default();
        Geometry {
            granule: self.granule.into(),
            input_bits: self.input_bits.unwrap_or(base.input_bits),
            output_size: self.output_bits.as_ref().map_or(base.output_size, |bits| address_size(*bits.get_ref())),
            cover: match self.cover {
                Cover::Few => smmuv3::Cover::Few,
                Cover::Exact => smmuv3::Cover::Exact,
            },
        }
    }

    pub(super) fn stage(&self) -> Stage {
        if self.kind == DomainKind::S2 { Stage::S2 } else { Stage::S1 }
    }
}

impl From<Granule> for arch::Granule {
    fn from(granule: Granule) -> Self {
        match granule {
            Granule::K4 => arch::Granule::K4,
            Granule::K16 => arch::Granule::K16,
            Granule::K64 => arch::Granule::K64,
        }
    }
}

impl From<AccessRights> for Prot {
    fn from(rights: AccessRights) -> Self {
        match rights {
            AccessRights::R => Prot::READ,
            AccessRights::Rw => Prot::READ | Prot::WRITE,
        }
    }
}

impl From<OwedKind> for Kind {
    fn from(kind: OwedKind) -> Self {
        match kind {
            OwedKind::S1Asid => Kind::S1Asid,
            OwedKind::S2Vmid => Kind::S2Vmid,
            OwedKind::S2VmidS1Clear => Kind::S2VmidS1Clear,
            OwedKind::Ats => Kind::Ats,
            OwedKind::AtsFull => Kind::AtsFull,
        }
    }
}

impl From<Sabotaged> for Sabotage {
    fn from(what: Sabotaged) -> Self {
        match what {
            Sabotaged::IgnoreTlbiByAddress => Sabotage::IgnoreTlbiByAddress,
            Sabotaged::IgnoreTlbiByTag => Sabotage::IgnoreTlbiByTag,
            Sabotaged::TreatTlbiAsLeaf => Sabotage::TreatTlbiAsLeaf,
            Sabotaged::IgnoreNhAll => Sabotage::IgnoreNhAll,
            Sabotaged::IgnoreCfgi => Sabotage::IgnoreCfgi,
            Sabotaged::IgnoreSync => Sabotage::IgnoreSync,
            Sabotaged::IgnoreInnerSync => Sabotage::IgnoreInnerSync,
            Sabotaged::IgnoreAtcInv => Sabotage::IgnoreAtcInv,
        }
    }
}
