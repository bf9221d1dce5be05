//! From entries of the array and a change to the commands for one SMMU.

use super::range::{atc_cover, tlbi_cover};
use crate::arch::{ATC_INV_ALL, Command, Features, Granule, SyncSignal, TlbiAddr};
use crate::invs::{Key, Kind};

/// What changed in a translation table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Descriptors for `first ..= last`.
    Range {
        /// The first byte; a multiple of the granule.
        first: u64,
        /// The last byte.
        last: u64,
        granule: Granule,
        /// The smallest leaf that was there: without range invalidation, one command for each of them.
        stride: u64,
        /// Only leaves changed; tables stay where they are, and walk caches are right.
        leaf: bool,
    },
    /// Anything.
    Everything,
}

/// Without range invalidation, more commands than this become one for the whole tag.
const MAX_SINGLE: u64 = 64;

/// Pushes the commands for `keys`, which are sorted and all of one SMMU, with a CMD_SYNC wherever the next kind must wait for the last.
///
/// Commands behind a CMD_SYNC do not begin before it completes (IHI 0070 §4.7.3), so the order TLBI, stage 1 clear, ATC_INV needs
/// no CPU to wait in between. The final CMD_SYNC is the caller's.
pub(super) fn push_commands(
    keys: impl Iterator<Item = Key>,
    change: &Change,
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

fn push_entry(key: Key, change: &Change, features: &Features, ats_stu: u8, push: &mut impl FnMut(Command)) {
    // ASIDs and VMIDs have 16 bits; an entry's id came from one.
    let tag = key.id() as u16;
    match (key.kind(), *change) {
        (Kind::S1Asid | Kind::S2Vmid, Change::Range { first, last, granule, stride, leaf }) => {
            let by_address = |addr| match key.kind() {
                Kind::S1Asid => Command::TlbiNhVa { vmid: 0, asid: tag, addr },
                _ => Command::TlbiS2Ipa { vmid: tag, addr },
            };
            if features.range_inv {
                let granules = ((last - first) >> granule.shift()) + 1;
                let range = tlbi_cover(granules, granule);
                push(by_address(TlbiAddr { addr: first, leaf, range }));
                return;
            }
            let count = (last - first) / stride.max(granule.size()) + 1;
            if count > MAX_SINGLE {
                push(flush_tag(key));
                return;
            }
            for index in 0..count {
                push(by_address(TlbiAddr { addr: first + index * stride.max(granule.size()), leaf, range: None }));
            }
        }
        (Kind::S1Asid | Kind::S2Vmid, Change::Everything) => push(flush_tag(key)),
        (Kind::S2VmidS1Clear, _) => push(Command::TlbiNhAll { vmid: tag }),
        (Kind::Ats, Change::Range { first, last, .. }) => {
            for (addr, size) in atc_cover(first, last, ats_stu).into_iter().flatten() {
                push(atc_inv(key, addr, size));
            }
        }
        (Kind::Ats, Change::Everything) | (Kind::AtsFull, _) => push(flush_atc(key)),
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
