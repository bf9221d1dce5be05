//! Everything that can be known to be wrong before anything runs: names that do not exist, steps that cannot be.

use std::collections::BTreeMap;

use smmuv3::arch::RawEvent;
use toml::Spanned;

use super::file::{ADDRESS_BITS, DomainKind, File, Granule, GuestSte, Name, Nested, Smmu};
use super::source::Problem;
use super::step::{Action, Dma, Set, Step};

type Checked = Result<(), Problem>;

/// What a DMA may end in that leaves no event.
pub(super) const SILENT: &str = "silent";
pub(super) const MAYBE: &str = "maybe";
pub(super) const ATS_OFF: &str = "ats off";
pub(super) const ATS_DENIED: &str = "ats denied";
pub(super) const ATS_UNSUPPORTED: &str = "ats unsupported";
pub(super) const ATS_ABORTED: &str = "ats aborted";

/// Those that need ATS.
pub(super) const ATS_FAULTS: [&str; 4] = [ATS_OFF, ATS_DENIED, ATS_UNSUPPORTED, ATS_ABORTED];
const OTHER_FAULTS: [&str; 6] = [SILENT, MAYBE, ATS_OFF, ATS_DENIED, ATS_UNSUPPORTED, ATS_ABORTED];

/// A page of 4 KiB.
const PAGE: u64 = 0x1000;
/// The input bits of the tables that the runner makes for guests.
pub(super) const GUEST_INPUT_BITS: u8 = 39;
/// Of any table.
const MOST_INPUT_BITS: u8 = 48;
/// Of a step; 4 GiB.
const MOST_PAGES: usize = 1 << 20;
const MOST_BUFFER_PAGES: usize = 4096;
const MOST_ALIGN: usize = 1 << 24;
/// What a device can have, and the model.
const MOST_SIDS: usize = 16;
const MOST_SMMUS: usize = 16;

/// Checks all that `file` says.
pub(super) fn check(file: &File) -> Checked {
    let names = Names::new(file)?;
    if file.smmu.is_empty() || file.smmu.len() > MOST_SMMUS {
        let at = file.smmu.get(MOST_SMMUS).map_or(0, |smmu| smmu.name.span().start);
        return Err(Problem::new(at, format!("{} SMMUs, expected 1 to {MOST_SMMUS}", file.smmu.len())));
    }
    file.smmu.iter().try_for_each(smmu)?;
    for device in &file.device {
        names.smmu(device.smmu.as_ref(), &device.name)?;
        let count = device.sids.get_ref().len();
        if count == 0 || count > MOST_SIDS {
            return wrong(&device.sids, format!("{count} StreamIDs, expected 1 to {MOST_SIDS}"));
        }
    }
    for buffer in &file.buffer {
        count(&buffer.pages, MOST_BUFFER_PAGES)?;
        let align = *buffer.align.get_ref();
        if !align.is_power_of_two() || !(PAGE as usize..=MOST_ALIGN).contains(&align) {
            let text = format!("align = {align:#x}, expected a power of two from 0x1000 to {MOST_ALIGN:#x}");
            return wrong(&buffer.align, text);
        }
    }
    for domain in &file.domain {
        if let Some(bits) = &domain.output_bits {
            address_bits(bits)?;
        }
        if domain.kind == DomainKind::Sva && domain.granule != Granule::K4 {
            return wrong(
                &domain.name,
                "the runner's tables of sva domains have 4 KiB pages, expected granule = \"4k\"",
            );
        }
    }
    for vsmmu in &file.vsmmu {
        let home = names.smmu(vsmmu.smmu.as_ref(), &vsmmu.name)?;
        if names.domain(&vsmmu.parent, &[Is::S2])? != Is::S2 {
            return wrong(&vsmmu.parent, "expected an s2 domain");
        }
        for stream in &vsmmu.streams {
            if names.device(&stream.device)? != home {
                let text = format!("device {:?} is not behind the vSMMU's SMMU", stream.device.get_ref());
                return wrong(&stream.device, format!("{text}, expected one that is"));
            }
        }
    }
    file.nested.iter().try_for_each(|domain| nested(domain, &names))?;
    for step in &file.steps {
        check_step(step, &names, file)?;
    }
    threads(file, &names)
}

fn wrong<T>(place: &Spanned<T>, what: impl std::fmt::Display) -> Checked {
    Err(Problem::new(place.span().start, what))
}

fn smmu(smmu: &Smmu) -> Checked {
    for (bits, most) in [(&smmu.sid_bits, 32), (&smmu.ssid_bits, 20)] {
        if let Some(bits) = bits.as_ref().filter(|bits| *bits.get_ref() > most) {
            return wrong(bits, format!("{} bits, expected at most {most}", bits.get_ref()));
        }
    }
    smmu.output_bits.as_ref().map_or(Ok(()), address_bits)
}

fn address_bits(bits: &Spanned<u8>) -> Checked {
    if ADDRESS_BITS.contains(bits.get_ref()) {
        return Ok(());
    }
    wrong(bits, format!("addresses of {} bits, expected one of {}", bits.get_ref(), list(ADDRESS_BITS)))
}

fn nested(domain: &Nested, names: &Names) -> Checked {
    names.vsmmu(&domain.vsmmu)?;
    if *domain.ste.get_ref() != GuestSte::Stage1 && (domain.ats || !domain.mappings.is_empty()) {
        return wrong(&domain.ste, "only a guest STE \"stage1\" has ATS and mappings");
    }
    page(&domain.tables)?;
    domain.mappings.iter().try_for_each(|mapping| {
        place(&mapping.iova, 1, GUEST_INPUT_BITS)?;
        page(&mapping.ipa)
    })
}

/// A multiple of the page size.
fn page(address: &Spanned<u64>) -> Checked {
    let value = *address.get_ref();
    if value.is_multiple_of(PAGE) {
        return Ok(());
    }
    wrong(address, format!("{value:#x}, expected a multiple of 0x1000"))
}

/// Whole pages that a table of so many input bits has room for.
fn place(iova: &Spanned<u64>, pages: usize, input_bits: u8) -> Checked {
    page(iova)?;
    let first = *iova.get_ref();
    let end = first.checked_add(pages as u64 * PAGE);
    if end.is_some_and(|end| end <= 1 << input_bits) {
        return Ok(());
    }
    wrong(iova, format!("{first:#x} and {pages} pages, expected less than the {input_bits} input bits of the table"))
}

fn count(pages: &Spanned<usize>, most: usize) -> Checked {
    if (1..=most).contains(pages.get_ref()) {
        return Ok(());
    }
    wrong(pages, format!("{} pages, expected 1 to {most}", pages.get_ref()))
}

fn list<T: std::fmt::Display>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    if all.is_empty() { "none at all".to_owned() } else { all.join(", ") }
}

/// What a name in `domain = ` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    S1,
    S2,
    Sva,
    /// On the SMMU with this index.
    Nested(usize),
}

impl Is {
    fn kind(self) -> &'static str {
        match self {
            Is::S1 => "s1",
            Is::S2 => "s2",
            Is::Sva => "sva",
            Is::Nested(_) => "nested",
        }
    }
}

const NESTED: Is = Is::Nested(0);

/// All names, by what they name.
struct Names<'f> {
    smmus: BTreeMap<&'f str, usize>,
    /// With the SMMU's index.
    devices: BTreeMap<&'f str, usize>,
    buffers: BTreeMap<&'f str, ()>,
    domains: BTreeMap<&'f str, Is>,
    /// With the SMMU's index.
    vsmmus: BTreeMap<&'f str, usize>,
    groups: BTreeMap<&'f str, ()>,
}

/// Adds a name that must be new.
fn add<'f, T>(map: &mut BTreeMap<&'f str, T>, what: &str, name: &'f Name, value: T) -> Checked {
    match map.insert(name.get_ref(), value) {
        None => Ok(()),
        Some(_) => wrong(name, format!("a second {what} {:?}, expected another name", name.get_ref())),
    }
}

fn find<T: Copy>(map: &BTreeMap<&str, T>, what: &str, name: &Name) -> Result<T, Problem> {
    map.get(name.get_ref().as_str()).copied().ok_or_else(|| {
        let text = format!("there is no {what} {:?}, expected one of: {}", name.get_ref(), list(map.keys()));
        Problem::new(name.span().start, text)
    })
}

impl<'f> Names<'f> {
    fn new(file: &'f File) -> Result<Self, Problem> {
        let mut names = Names {
            smmus: BTreeMap::new(),
            devices: BTreeMap::new(),
            buffers: BTreeMap::new(),
            domains: BTreeMap::new(),
            vsmmus: BTreeMap::new(),
            groups: file.threads.iter().map(|threads| (threads.group.get_ref().as_str(), ())).collect(),
        };
        for (index, smmu) in file.smmu.iter().enumerate() {
            add(&mut names.smmus, "SMMU", &smmu.name, index)?;
        }
        for device in &file.device {
            let smmu = names.smmu(device.smmu.as_ref(), &device.name)?;
            add(&mut names.devices, "device", &device.name, smmu)?;
        }
        for buffer in &file.buffer {
            add(&mut names.buffers, "buffer", &buffer.name, ())?;
        }
        for vsmmu in &file.vsmmu {
            let smmu = names.smmu(vsmmu.smmu.as_ref(), &vsmmu.name)?;
            add(&mut names.vsmmus, "vSMMU", &vsmmu.name, smmu)?;
        }
        for domain in &file.domain {
            let is = match domain.kind {
                DomainKind::S1 => Is::S1,
                DomainKind::S2 => Is::S2,
                DomainKind::Sva => Is::Sva,
            };
            add(&mut names.domains, "domain", &domain.name, is)?;
        }
        for nested in &file.nested {
            let smmu = names.vsmmu(&nested.vsmmu)?;
            add(&mut names.domains, "domain", &nested.name, Is::Nested(smmu))?;
        }
        Ok(names)
    }

    /// The index of the SMMU that is named, or of the only one.
    fn smmu(&self, name: Option<&Name>, of: &Name) -> Result<usize, Problem> {
        match name {
            Some(name) => find(&self.smmus, "SMMU", name),
            None if self.smmus.len() == 1 => Ok(0),
            None => {
                let text =
                    format!("{:?} names no SMMU, expected smmu = one of: {}", of.get_ref(), list(self.smmus.keys()));
                Err(Problem::new(of.span().start, text))
            }
        }
    }

    fn device(&self, name: &Name) -> Result<usize, Problem> {
        find(&self.devices, "device", name)
    }

    fn vsmmu(&self, name: &Name) -> Result<usize, Problem> {
        find(&self.vsmmus, "vSMMU", name)
    }

    fn buffer(&self, name: &Name) -> Checked {
        find(&self.buffers, "buffer", name)
    }

    /// A domain of one of the kinds in `expected`.
    fn domain(&self, name: &Name, expected: &[Is]) -> Result<Is, Problem> {
        let is = find(&self.domains, "domain", name)?;
        if expected.iter().any(|kind| kind.kind() == is.kind()) {
            return Ok(is);
        }
        let kinds = list(expected.iter().map(|kind| kind.kind()));
        let text = format!("domain {:?} is of kind {}, expected {kinds}", name.get_ref(), is.kind());
        Err(Problem::new(name.span().start, text))
    }
}

fn check_step(step: &Spanned<Step>, names: &Names, file: &File) -> Checked {
    let Step { target, action, .. } = step.get_ref();
    match action {
        Action::Map(map) => {
            names.domain(target, &[Is::S1, Is::S2])?;
            names.buffer(&map.buffer)
        }
        Action::Unmap(unmap) => {
            names.domain(target, &[Is::S1, Is::S2])?;
            unmap.pages.as_ref().map_or(Ok(()), |pages| count(pages, MOST_PAGES))
        }
        Action::Set(set) => check_set(target, set, names, file),
        Action::Clear(clear) => {
            names.domain(target, &[Is::Sva, NESTED])?;
            count(&clear.pages, MOST_PAGES)?;
            place(&clear.iova, *clear.pages.get_ref(), input_bits(target, file))
        }
        Action::Invalidate(range) => {
            names.domain(target, &[Is::Sva])?;
            count(&range.pages, MOST_PAGES)?;
            let pages = *range.pages.get_ref();
            range.iova.as_ref().map_or(Ok(()), |iova| place(iova, pages, input_bits(target, file)))
        }
        Action::Release(_) => names.domain(target, &[Is::Sva]).map(drop),
        Action::GuestInvalidate(guest) => {
            names.vsmmu(target)?;
            place(&guest.iova, 1, GUEST_INPUT_BITS)?;
            let streams =
                file.vsmmu.iter().find(|vsmmu| vsmmu.name.get_ref() == target.get_ref()).map(|vsmmu| &vsmmu.streams);
            match (&guest.stream, streams) {
                (Some(sid), Some(streams)) if !streams.iter().any(|stream| stream.sid == *sid.get_ref()) => {
                    let known = list(streams.iter().map(|stream| stream.sid));
                    wrong(sid, format!("the guest has no StreamID {:#x}, expected one of: {known}", sid.get_ref()))
                }
                _ => Ok(()),
            }
        }
        Action::GuestCommands(_) => names.vsmmu(target).map(drop),
        Action::Dma(dma) => check_dma(target, dma, step.span().start, names, file),
        Action::Attach(attach) => {
            let device = names.device(target)?;
            let domain = names.domain(&attach.domain, &[Is::S1, Is::S2, NESTED])?;
            check_attach(&attach.domain, device, domain, file)
        }
        Action::AttachPasid(attach) => {
            let device = names.device(target)?;
            let domain = names.domain(&attach.domain, &[Is::S1, Is::Sva])?;
            check_attach(&attach.domain, device, domain, file)
        }
        Action::AttachIdentity(_) | Action::Detach(_) | Action::DetachPasid(_) | Action::RemoveDevice(_) => {
            names.device(target).map(drop)
        }
        Action::RemoveSmmu(_) => find(&names.smmus, "SMMU", target).map(drop),
        Action::Show(_) => names.domain(target, &[Is::S1, Is::S2, Is::Sva]).map(drop),
        Action::ExpectOwed(expected) => {
            names.domain(target, &[Is::S1, Is::S2, Is::Sva])?;
            expected.entries.iter().try_for_each(|entry| names.smmu(entry.smmu.as_ref(), target).map(drop))
        }
        Action::RunThreads(_) => find(&names.groups, "group of threads", target).map(drop),
    }
}

/// Of the table that the runner makes for an sva or nested domain.
fn input_bits(domain: &Name, file: &File) -> u8 {
    let sva = file.domain.iter().find(|sva| sva.name.get_ref() == domain.get_ref());
    sva.map_or(GUEST_INPUT_BITS, |sva| sva.geometry().input_bits.min(MOST_INPUT_BITS))
}

fn check_set(target: &Name, set: &Set, names: &Names, file: &File) -> Checked {
    let is = names.domain(target, &[Is::Sva, NESTED])?;
    let pages = set.buffer.as_ref().map_or(1, |buffer| file.pages(buffer));
    place(&set.iova, pages, input_bits(target, file))?;
    match (is, &set.buffer, &set.ipa) {
        (Is::Sva, Some(buffer), None) => names.buffer(buffer),
        (Is::Nested(_), None, Some(ipa)) => page(ipa),
        (Is::Sva, ..) => wrong(target, "expected buffer = \"...\", to which the page of an sva domain leads"),
        _ => wrong(target, "expected ipa = ..., to which the page of a nested domain leads"),
    }
}

fn check_dma(target: &Name, dma: &Dma, at: usize, names: &Names, file: &File) -> Checked {
    names.device(target)?;
    if let Some(buffer) = &dma.buffer {
        names.buffer(buffer)?;
    }
    let device = file.device.iter().find(|device| device.name.get_ref() == target.get_ref());
    let device = device.ok_or_else(|| Problem::new(at, "no such device"))?;
    let sids = device.sids.get_ref();
    match &dma.sid {
        Some(sid) if !sids.contains(sid.get_ref()) => {
            let text = format!("device {:?} does not have StreamID {:#x}", target.get_ref(), sid.get_ref());
            return wrong(sid, format!("{text}, expected one of: {}", list(sids)));
        }
        _ => {}
    }
    match &dma.fault {
        None if dma.buffer.is_none() => {
            return Err(Problem::new(at, "dma without a buffer, expected buffer = \"...\" or fault = \"...\""));
        }
        Some(_) if dma.iova.is_none() && dma.buffer.is_none() => {
            return Err(Problem::new(at, "dma without an address, expected iova = ... or buffer = \"...\""));
        }
        Some(fault) if !is_fault(fault.get_ref()) => {
            let text = format!("fault = {:?}, expected the name of an event or one of: ", fault.get_ref());
            return wrong(fault, text + &list(OTHER_FAULTS));
        }
        _ => {}
    }
    if dma.ats && !device.ats {
        return Err(Problem::new(at, format!("device {:?} has no ATS, expected ats = true there", target.get_ref())));
    }
    Ok(())
}

fn is_fault(name: &str) -> bool {
    let events = (0..=0xff).map(|code| RawEvent([code, 0, 0, 0]).decode().name());
    OTHER_FAULTS.contains(&name) || events.into_iter().any(|event| event == name)
}

/// Whether the device's SMMU can serve the domain, as far as the file tells.
fn check_attach(place: &Name, device_smmu: usize, domain: Is, file: &File) -> Checked {
    let Some(smmu) = file.smmu.get(device_smmu) else { return Ok(()) };
    let config = smmu.config();
    let name = smmu.name.get_ref();
    match domain {
        Is::S1 | Is::Sva if !config.stage1 => {
            wrong(place, format!("SMMU {name:?} has no stage 1, expected stage1 = true"))
        }
        Is::S2 if !config.stage2 => wrong(place, format!("SMMU {name:?} has no stage 2, expected stage2 = true")),
        Is::Nested(vsmmu) if vsmmu != device_smmu => {
            wrong(place, format!("the vSMMU is not on the device's SMMU {name:?}, expected one that is"))
        }
        _ => Ok(()),
    }
}

fn threads(file: &File, names: &Names) -> Checked {
    let mut mapped: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, threads) in file.threads.iter().enumerate() {
        let started = |step: &Spanned<Step>| {
            let Step { target, action, .. } = step.get_ref();
            matches!(action, Action::RunThreads(_)) && target.get_ref() == threads.group.get_ref()
        };
        if !file.steps.iter().any(started) {
            let group = threads.group.get_ref();
            return wrong(&threads.group, format!("nothing starts {group:?}, expected a step run_threads = {group:?}"));
        }
        for step in &threads.steps {
            let Step { verb, action, .. } = step.get_ref();
            if !action.may_run_in_threads() {
                return wrong(step, format!("{verb} in a thread, expected it in the main list of steps"));
            }
            check_step(step, names, file)?;
            // Two threads would compare each other's contents.
            let buffer = match action {
                Action::Map(map) => Some(&map.buffer),
                Action::Set(set) => set.buffer.as_ref(),
                Action::Dma(dma) if dma.fault.is_none() => dma.buffer.as_ref(),
                _ => None,
            };
            if let Some(buffer) = buffer
                && *mapped.entry(buffer.get_ref()).or_insert(number) != number
            {
                let text = format!("buffer {:?} is used by two threads", buffer.get_ref());
                return wrong(buffer, format!("{text}, expected one of its own for each"));
            }
        }
    }
    Ok(())
}
