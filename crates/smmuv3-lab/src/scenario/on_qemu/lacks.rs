//! What a file needs that QEMU's SMMU, its devices, or the lab's machine of them does not have. All of it is known before QEMU is started.

use smmuv3::arch::{Command, RawCommand, Shape, Stage};
use smmuv3_qemu::{MachineConfig, Qemu};

use super::{ATTEMPT, Edus};
use crate::scenario::check::{ATS_FAULTS, MAYBE, SILENT};
use crate::scenario::file::{AccessRights, Device, Domain, DomainKind, File, Granule, Nested, Smmu};
use crate::scenario::source::Problem;
use crate::scenario::step::{Action, Dma, GuestCommands, Map, Op, Set, Step};
use crate::session::PAGE;

/// Of the lab's machine.
const MOST_SMMUS: usize = 2;
/// DMA to addresses with more bits does not reach QEMU's SMMU.
const DMA_BITS: u32 = 48;
// What a file may choose of an SMMU, as QEMU's has it.
const SID_BITS: u8 = 16;
const SSID_BITS: u8 = 0;
const OUTPUT_BITS: u8 = 44;
const GRANULES: [Granule; 3] = [Granule::K4, Granule::K16, Granule::K64];

const ATS: &str = "ATS";
const PASIDS: &str = "PASIDs";

/// Where something is needed that is not there, and what.
type Checked = Result<(), Problem>;

/// Refuses a file that needs what no QEMU has.
pub(in crate::scenario) fn check(file: &File) -> Checked {
    needs(file).map_err(|Problem { at, what }| {
        Problem::new(at, format!("scenario {:?} needs {what}, which the QEMU backend does not have", file.name))
    })
}

/// Refuses a file that needs a newer QEMU.
pub(in crate::scenario) fn check_version(file: &File, qemu: &Qemu) -> Checked {
    match file.smmu.get(1) {
        Some(second) if !qemu.has_several_smmus() => {
            let (name, oldest) = (&file.name, Qemu::SEVERAL_SMMUS);
            let (path, version) = (qemu.path().display(), qemu.version());
            let text = format!(
                "scenario {name:?} needs two SMMUs, which QEMU has from version {oldest} on; {path} is QEMU {version}"
            );
            Err(Problem::new(second.name.span().start, text))
        }
        _ => Ok(()),
    }
}

/// Which `edu` is the device with a StreamID of the file. The machine puts them behind its SMMUs in turn.
pub(super) fn edus(file: &File) -> Edus {
    let mut edus = Edus::new();
    for device in &file.device {
        let smmu = file.smmu_index(device.smmu.as_ref());
        for &sid in device.sids.get_ref() {
            let before = edus.keys().filter(|(other, _)| *other == smmu).count();
            edus.entry((smmu, sid)).or_insert(before * file.smmu.len() + smmu);
        }
    }
    edus
}

fn need(at: usize, what: impl std::fmt::Display) -> Checked {
    Err(Problem::new(at, what))
}

fn needs(file: &File) -> Checked {
    if let Some(third) = file.smmu.get(MOST_SMMUS) {
        return need(third.name.span().start, format!("more than {MOST_SMMUS} SMMUs"));
    }
    file.smmu.iter().try_for_each(smmu)?;
    file.device.iter().try_for_each(device)?;
    room(file)?;
    file.domain.iter().try_for_each(domain)?;
    file.nested.iter().try_for_each(|domain| nested(domain, file))?;
    file.steps.iter().try_for_each(|one| step(one.get_ref(), one.span().start, file))?;
    for one in file.threads.iter().flat_map(|threads| &threads.steps) {
        let at = one.span().start;
        match &one.get_ref().action {
            // The event of an access says nothing where others go on beside it.
            Action::Dma(Dma { fault: Some(fault), .. }) if fault.get_ref() != MAYBE => {
                return need(at, "a device that notices a fault (in threads, where events are not looked at)");
            }
            _ => step(one.get_ref(), at, file)?,
        }
    }
    Ok(())
}

/// What is chosen must be what QEMU's SMMU has.
fn smmu(smmu: &Smmu) -> Checked {
    let at = smmu.name.span().start;
    // CD tables have more than one level only with PASIDs.
    for (key, chosen, there) in [
        ("stage1", smmu.stage1, true),
        ("stage2", smmu.stage2, true),
        ("ats", smmu.ats, false),
        ("asid16", smmu.asid16, true),
        ("vmid16", smmu.vmid16, true),
        ("range_inv", smmu.range_inv, true),
        ("cd_two_level", smmu.cd_two_level, false),
        ("st_two_level", smmu.st_two_level, true),
    ] {
        if let Some(chosen) = chosen.filter(|chosen| *chosen != there) {
            return need(at, format!("an SMMU with {key} = {chosen}"));
        }
    }
    for (key, chosen, there) in [
        ("sid_bits", &smmu.sid_bits, SID_BITS),
        ("ssid_bits", &smmu.ssid_bits, SSID_BITS),
        ("output_bits", &smmu.output_bits, OUTPUT_BITS),
    ] {
        if let Some(chosen) = chosen.as_ref().filter(|chosen| *chosen.get_ref() != there) {
            return need(chosen.span().start, format!("an SMMU with {key} = {}", chosen.get_ref()));
        }
    }
    if smmu.granules.as_ref().is_some_and(|chosen| !GRANULES.iter().all(|granule| chosen.contains(granule))) {
        return need(at, "an SMMU with fewer granules");
    }
    if let Some(what) = smmu.sabotage.first() {
        return need(at, format!("an SMMU with {what:?}"));
    }
    Ok(())
}

fn device(device: &Device) -> Checked {
    let at = device.name.span().start;
    match device {
        Device { ats: true, .. } => need(at, ATS),
        Device { pasid_bits: 1.., .. } => need(at, PASIDS),
        _ => Ok(()),
    }
}

/// There is an `edu` for each StreamID.
fn room(file: &File) -> Checked {
    let (edus, most) = (edus(file), usize::from(MachineConfig::MOST_EDUS));
    for device in &file.device {
        let smmu = file.smmu_index(device.smmu.as_ref());
        if device.sids.get_ref().iter().any(|&sid| edus.get(&(smmu, sid)).is_some_and(|&edu| edu >= most)) {
            let here = (0..most).skip(smmu).step_by(file.smmu.len()).count();
            return need(device.sids.span().start, format!("more than {here} StreamIDs behind an SMMU"));
        }
    }
    Ok(())
}

fn domain(domain: &Domain) -> Checked {
    match &domain.output_bits {
        _ if domain.kind == DomainKind::Sva => need(domain.name.span().start, PASIDS),
        Some(bits) if *bits.get_ref() > OUTPUT_BITS => {
            need(bits.span().start, format!("{} output address bits", bits.get_ref()))
        }
        _ => Ok(()),
    }
}

fn nested(nested: &Nested, file: &File) -> Checked {
    if nested.ats {
        return need(nested.name.span().start, ATS);
    }
    let vsmmu = file.vsmmu.iter().find(|vsmmu| vsmmu.name.get_ref() == nested.vsmmu.get_ref());
    vsmmu.map_or(Ok(()), |vsmmu| {
        let tables = &nested.tables;
        first_table(vsmmu.parent.get_ref(), *tables.get_ref(), 1, tables.span().start, file)
    })
}

fn step(step: &Step, at: usize, file: &File) -> Checked {
    match &step.action {
        Action::AttachPasid(_) | Action::DetachPasid(_) => need(at, PASIDS),
        Action::GuestInvalidate(guest) if guest.stream.is_some() => need(at, ATS),
        Action::GuestCommands(guest) => guest_commands(guest, at),
        Action::Map(map) => first_table(step.target.get_ref(), map.iova, file.pages(&map.buffer), at, file),
        Action::Dma(dma) => access(dma, at, file),
        _ => Ok(()),
    }
}

/// Commands after the one that is refused are not looked at.
fn guest_commands(guest: &GuestCommands, at: usize) -> Checked {
    let looked_at = guest.refused.map_or(guest.raw.len(), |index| index.saturating_add(1));
    for words in guest.raw.iter().take(looked_at) {
        match RawCommand(*words).decode() {
            Ok(Command::AtcInv { .. }) => return need(at, ATS),
            Ok(Command::CfgiCd { ssid: 1.., .. }) => return need(at, PASIDS),
            _ => {}
        }
    }
    Ok(())
}

/// QEMU takes all tables with which a stage 2 walk begins for the first of them.
fn first_table(domain: &str, iova: u64, pages: usize, at: usize, file: &File) -> Checked {
    let domain = file.domain.iter().find(|one| one.name.get_ref() == domain && one.kind == DomainKind::S2);
    let shape = domain
        .map(Domain::geometry)
        .and_then(|geometry| Shape::new(Stage::S2, geometry.granule, geometry.input_bits, geometry.output_size).ok());
    let first = shape.map_or(u64::MAX, |shape| (shape.entries() as u64) << shape.level_shift(shape.start_level()));
    if iova.saturating_add((pages * PAGE) as u64) > first {
        return need(at, format!("concatenated stage 2 tables (addresses from {first:#x} on)"));
    }
    Ok(())
}

/// An `edu` does not notice that it is refused. What it reads it only tells by writing it to the same place.
fn access(dma: &Dma, at: usize, file: &File) -> Checked {
    let fault = dma.fault.as_ref().map(|fault| fault.get_ref().as_str());
    let len = match (fault, &dma.buffer) {
        (None, Some(buffer)) => file.pages(buffer) * PAGE,
        _ => ATTEMPT,
    };
    if dma.pasid.is_some() {
        return need(at, PASIDS);
    }
    if dma.ats || fault.is_some_and(|fault| ATS_FAULTS.contains(&fault)) {
        return need(at, ATS);
    }
    if dma.iova.is_some_and(|iova| iova.saturating_add(len as u64) > 1 << DMA_BITS) {
        return need(at, format!("DMA to addresses of more than {DMA_BITS} bits"));
    }
    match (fault, dma.op, &dma.buffer) {
        (Some(SILENT), Op::Write, Some(_)) => Ok(()),
        (Some(SILENT), ..) => {
            need(at, "a device that notices a silent fault (other than of a write, in the buffer that it names)")
        }
        (None, Op::Read, Some(_)) if reads_only(dma, file) => {
            need(at, "a device that tells what it has read (from where it may not write)")
        }
        _ => Ok(()),
    }
}

/// Whether a buffer that is accessed, or the guest's page, is mapped read-only anywhere in the file.
fn reads_only(dma: &Dma, file: &File) -> bool {
    let all = file.steps.iter().chain(file.threads.iter().flat_map(|threads| &threads.steps));
    let name = dma.buffer.as_ref().map(|buffer| buffer.get_ref());
    let page = |iova: u64| iova / PAGE as u64;
    let at = dma.iova.map(page);
    all.map(|step| &step.get_ref().action).any(|action| match action {
        Action::Map(Map { buffer, access: AccessRights::R, .. }) => Some(buffer.get_ref()) == name,
        Action::Set(Set { iova, access: AccessRights::R, .. }) => Some(page(*iova.get_ref())) == at,
        _ => false,
    }) || file
        .nested
        .iter()
        .flat_map(|nested| &nested.mappings)
        .any(|mapping| mapping.access == AccessRights::R && Some(page(*mapping.iova.get_ref())) == at)
}
