//! From entries of the array and a change to the commands for one SMMU.

use super::range::{atc_cover, tlbi_cover};
use super::spans::Span;
use crate::arch::{ATC_INV_ALL, Command, Features, Granule, SyncSignal, TlbiAddr};
use crate::invs::{Key, Kind};

/// What changed in a translation table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    /// The descriptors of these ranges.
    Spans { granule: Granule, spans: &'a [Span] },
    /// Anything.
    Everything,
}

/// Without range invalidation, more commands than this become one for the whole tag.
const MAX_SINGLE: u64 = 64;

/// Pushes the commands for `keys`, which are sorted and all of one SMMU, with a CMD_SYNC wherever the next kind must wait for the last.
///
/// Commands behind a CMD_SYNC do not begin before it completes (IHI 0070 §4.7.3), so the order TLBI, stage 1 clear, ATC_INV needs
/// no CPU to wait in between. The final CMD_SYNC is the caller's.
pub(crate) fn push_commands(
    keys: impl Iterator<Item = Key>,
    change: &Change<'_>,
    features: &Features,
    ats_stu: u8,
    mut push: impl FnMut(Command),
) {
    let mut last_phase = None;
    for key in keys {
        let phase = match key.kind() {
            Kind::S1Asid | Kind::S2Vmid => 0,
            // The VMID's whole flush has it done already.
            Kind::S2VmidS1Clear if *change == Change::Everything => continue,
            Kind::S2VmidS1Clear => 1,
            Kind::Ats | Kind::AtsFull => 2,
        };
        if last_phase.is_some_and(|last| last != phase) {
            push(Command::Sync(SyncSignal::None));
        }
        last_phase = Some(phase);
        push_entry(key, change, features, ats_stu, &mut push);
    }
}

fn push_entry(key: Key, change: &Change<'_>, features: &Features, ats_stu: u8, push: &mut impl FnMut(Command)) {
    match (key.kind(), *change) {
        (Kind::S1Asid | Kind::S2Vmid, Change::Everything) => push(flush_tag(key)),
        (Kind::S1Asid | Kind::S2Vmid, Change::Spans { granule, spans }) => {
            let count = |span: &Span| (span.last - span.first) / span.stride.max(granule.size()) + 1;
            let singles = spans.iter().fold(0u64, |sum, span| sum.saturating_add(count(span)));
            if !features.range_inv && singles > MAX_SINGLE {
                return push(flush_tag(key));
            }
            for span in spans {
                let Span { first, last, stride, leaf } = *span;
                if features.range_inv {
                    let granules = ((last - first) >> granule.shift()) + 1;
                    push(tlbi(key, TlbiAddr { addr: first, leaf, range: tlbi_cover(granules, granule) }));
                    continue;
                }
                for index in 0..count(span) {
                    let addr = first + index * stride.max(granule.size());
                    push(tlbi(key, TlbiAddr { addr, leaf, range: None }));
                }
            }
        }
        // ASIDs and VMIDs have 16 bits; an entry's id came from one.
        (Kind::S2VmidS1Clear, _) => push(Command::TlbiNhAll { vmid: key.id() as u16 }),
        (Kind::Ats, Change::Spans { spans, .. }) => {
            for (addr, size) in spans.iter().flat_map(|span| atc_cover(span.first, span.last, ats_stu)).flatten() {
                push(atc_inv(key, addr, size));
            }
        }
        (Kind::Ats, Change::Everything) | (Kind::AtsFull, _) => push(flush_atc(key)),
    }
}

/// The invalidation of some addresses of a tag.
fn tlbi(key: Key, addr: TlbiAddr) -> Command {
    let tag = key.id() as u16;
    match key.kind() {
        Kind::S1Asid => Command::TlbiNhVa { vmid: 0, asid: tag, addr },
        _ => Command::TlbiS2Ipa { vmid: tag, addr },
    }
}

/// The command that makes a device forget everything it remembers for an `Ats` or `AtsFull` entry.
pub(super) fn flush_atc(key: Key) -> Command {
    atc_inv(key, 0, ATC_INV_ALL)
}

fn atc_inv(key: Key, addr: u64, size: u8) -> Command {
    let ssid = (key.ssid() != 0).then_some(key.ssid());
    Command::AtcInv { sid: key.id(), ssid, global: false, addr, size }
}

/// The command that makes the tag of an `S1Asid` or `S2Vmid` clean.
pub(crate) fn flush_tag(key: Key) -> Command {
    match key.kind() {
        Kind::S1Asid => Command::TlbiNhAsid { vmid: 0, asid: key.id() as u16 },
        _ => Command::TlbiS12Vmall { vmid: key.id() as u16 },
    }
}

#[cfg(test)]
#[path = "commands_test.rs"]
mod tests;
