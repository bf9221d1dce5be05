//! From entries of the array and a change to the commands for one SMMU.

use super::range::{atc_cover, tlbi_cover};
use super::spans::Span;
use crate::arch::{ATC_INV_ALL, Command, Features, Granule, RawCommand, SyncSignal, TlbiAddr};
use crate::domain::Cover;
use crate::invs::{Key, Kind, Run};

/// What changed in a translation table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    /// The descriptors of these ranges.
    Spans { granule: Granule, cover: Cover, spans: &'a [Span] },
    /// Anything.
    Everything,
}

/// More TLBIs by address than this become one for the whole tag.
const MAX_TLBIS: usize = 64;

/// Adds the commands for `runs`, which are in order and all of one SMMU, to `queue`, with a CMD_SYNC wherever the next kind must wait for the last.
///
/// Commands behind a CMD_SYNC do not begin before it completes (IHI 0070 §4.7.3), so the order TLBI, stage 1 clear, ATC_INV needs
/// no CPU to wait in between. The final CMD_SYNC is the caller's.
pub(crate) fn push_commands<'a>(
    runs: impl Iterator<Item = Run<'a>>,
    change: &Change<'_>,
    features: &Features,
    ats_stu: u8,
    queue: &mut impl Extend<RawCommand>,
) {
    let mut last_phase = None;
    for run in runs {
        let phase = match run.kind() {
            Kind::S1Asid | Kind::S2Vmid => 0,
            // The VMID's whole flush has it done already.
            Kind::S2VmidS1Clear if *change == Change::Everything => continue,
            Kind::S2VmidS1Clear => 1,
            Kind::Ats | Kind::AtsFull => 2,
        };
        if last_phase.is_some_and(|last| last != phase) {
            queue.extend([Command::Sync(SyncSignal::None).encode()]);
        }
        last_phase = Some(phase);
        push_run(run, change, features, ats_stu, queue);
    }
}

fn push_run(run: Run<'_>, change: &Change<'_>, features: &Features, ats_stu: u8, queue: &mut impl Extend<RawCommand>) {
    // What all entries of the run have in common.
    let any = Key::new(0, run.kind(), 0, 0);
    let mut push = |command| push_for_each(run, command, queue);
    match (run.kind(), *change) {
        (Kind::S1Asid | Kind::S2Vmid, Change::Everything) => push(flush_tag(any)),
        (Kind::S1Asid | Kind::S2Vmid, Change::Spans { granule, cover, spans }) => {
            let addrs = || spans.iter().flat_map(|span| tlbi_cover(span, granule, cover, features.range_inv));
            if addrs().nth(MAX_TLBIS).is_some() {
                return push(flush_tag(any));
            }
            addrs().for_each(|addr| push(tlbi(any, addr)));
        }
        (Kind::S2VmidS1Clear, _) => push(Command::TlbiNhAll { vmid: 0 }),
        (Kind::Ats, Change::Spans { cover, spans, .. }) => {
            let spans = spans.iter().flat_map(|span| atc_cover(span.first, span.last, ats_stu, cover));
            spans.for_each(|(addr, size)| push(atc_inv(any, addr, size)));
        }
        (Kind::Ats, Change::Everything) | (Kind::AtsFull, _) => push(flush_atc(any)),
    }
}

/// Adds a command for each entry of a run. It is encoded once: from entry to entry only the id differs, which in `command` is zero.
fn push_for_each(run: Run<'_>, command: Command, queue: &mut impl Extend<RawCommand>) {
    let RawCommand([word0, word1]) = command.encode();
    match run.kind() {
        // ASIDs and VMIDs have 16 bits; an entry's id came from one.
        Kind::S1Asid => run.extend(queue, |key| RawCommand([word0 | u64::from(key.id() as u16) << 48, word1])),
        Kind::S2Vmid | Kind::S2VmidS1Clear => {
            run.extend(queue, |key| RawCommand([word0 | u64::from(key.id() as u16) << 32, word1]));
        }
        Kind::Ats | Kind::AtsFull => run.extend(queue, |key| {
            let ssv = u64::from(key.ssid() != 0) << 11;
            RawCommand([word0 | u64::from(key.id()) << 32 | u64::from(key.ssid()) << 12 | ssv, word1])
        }),
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
