//! What a storm does: operations, their order, and how they are chosen.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::rng::Rng;

/// Pages of each domain that are mapped one by one. They lie on both sides of a 2 MiB boundary.
pub(super) const PAGES: usize = 12;
/// 2 MiB regions of each domain, mapped as one block or with a few pages.
pub(super) const REGIONS: usize = 2;
/// The pages of a region that are mapped one by one.
pub(super) const REGION_PAGES: [u64; 3] = [0, 5, 511];
/// PASIDs of each device that are used.
pub(super) const PASIDS: usize = 3;

/// An operation of one thread, and the seed of all that happens during it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    pub thread: usize,
    /// 0: during the operation no device accesses anything, and other threads run only if it waits for them.
    pub seed: u64,
    pub op: Op,
}

/// How a range is unmapped.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// With one call.
    AtOnce,
    /// Page by page, with one invalidation at the end.
    Gathered,
    /// The same with owners that wait for it.
    Deferred,
}

/// An operation. Domains, devices, guests and SMMUs are numbered from 0. What makes no sense at the moment does nothing: a page that is
/// mapped already is not mapped, what another thread works on is left alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Op {
    /// Maps those of some pages that are not mapped.
    Map {
        domain: usize,
        first: usize,
        count: usize,
    },
    /// Unmaps some pages, frees them, and lets devices try.
    Unmap {
        domain: usize,
        first: usize,
        count: usize,
        way: Way,
    },
    /// Maps all of a region: with a block, or page by page.
    MapRegion {
        domain: usize,
        region: usize,
        block: bool,
    },
    /// Maps a page of a region.
    MapPage {
        domain: usize,
        region: usize,
        page: usize,
    },
    /// Unmaps a region, with the table that pages of it were mapped in.
    UnmapRegion {
        domain: usize,
        region: usize,
        way: Way,
    },
    /// Unmaps everything with one call.
    UnmapAll {
        domain: usize,
    },
    /// Unmaps everything, and makes a new domain in place of the old one.
    Renew {
        domain: usize,
    },
    Attach {
        device: usize,
        domain: usize,
    },
    Identity {
        device: usize,
    },
    Detach {
        device: usize,
    },
    AttachPasid {
        device: usize,
        pasid: usize,
        domain: usize,
    },
    DetachPasid {
        device: usize,
        pasid: usize,
    },
    AttachNested {
        device: usize,
        guest: usize,
    },
    /// Drops the device and adds it again.
    Replug {
        device: usize,
    },
    /// Commands of a guest.
    Guest {
        guest: usize,
        commands: GuestCommands,
    },
    /// Makes a new vSMMU in place of the old one.
    NewGuest {
        guest: usize,
    },
    /// Random accesses of a device.
    Dma {
        device: usize,
        accesses: usize,
    },
    TakeEvents {
        smmu: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum GuestCommands {
    ByAddress,
    ByAsid,
    Everything,
    Atc,
    Contexts,
}

impl Step {
    /// A step for `thread`.
    pub(super) fn random(rng: &mut Rng, machine: &Machine, thread: usize) -> Step {
        let op = Op::random(rng, machine);
        Step { thread, seed: rng.next() | 1, op }
    }
}

impl Op {
    fn random(rng: &mut Rng, machine: &Machine) -> Op {
        // Half of the operations are about one domain, so that they meet.
        let domain = if rng.one_in(2) { machine.favourite() } else { rng.below(machine.domains) };
        let device = rng.below(machine.devices);
        let region = rng.below(REGIONS);
        let pasid = 1 + rng.below(PASIDS);
        let guests = machine.real_guests();
        let guest = rng.below(guests.max(1));
        let count = if rng.one_in(2) { 1 } else { 1 + rng.below(5) };
        let first = rng.below(PAGES - count + 1);
        let way = rng.pick(&[Way::AtOnce, Way::AtOnce, Way::Gathered, Way::Deferred]);
        match rng.below(100) {
            0..22 => Op::Map { domain, first, count },
            22..44 => Op::Unmap { domain, first, count, way },
            44..46 => Op::MapRegion { domain, region, block: rng.one_in(2) },
            46..51 => Op::MapPage { domain, region, page: rng.below(REGION_PAGES.len()) },
            51..55 => Op::UnmapRegion { domain, region, way },
            55 => Op::UnmapAll { domain },
            56 => Op::Renew { domain },
            57..68 => Op::Attach { device, domain },
            68..70 => Op::Identity { device },
            70..75 => Op::Detach { device },
            75..80 => Op::AttachPasid { device, pasid, domain },
            80..83 => Op::DetachPasid { device, pasid },
            83..87 if guests > 0 => Op::AttachNested { device, guest },
            87..89 if guests > 0 => {
                use GuestCommands::*;
                Op::Guest { guest, commands: rng.pick(&[ByAddress, ByAsid, Everything, Atc, Contexts]) }
            }
            89 if guests > 0 => Op::NewGuest { guest },
            90 => Op::Replug { device },
            91 => Op::TakeEvents { smmu: rng.below(machine.smmus) },
            _ => Op::Dma { device, accesses: 32 },
        }
    }

    /// Whether the machine has what the operation names.
    pub(super) fn fits(&self, machine: &Machine) -> bool {
        let fits = |domain, device, guest| {
            domain < machine.domains && device < machine.devices && guest < machine.real_guests().max(1)
        };
        match *self {
            Op::Map { domain, first, count } | Op::Unmap { domain, first, count, .. } => {
                fits(domain, 0, 0) && count > 0 && first < PAGES && count <= PAGES - first
            }
            Op::MapRegion { domain, region, .. } | Op::UnmapRegion { domain, region, .. } => {
                fits(domain, 0, 0) && region < REGIONS
            }
            Op::MapPage { domain, region, page } => fits(domain, 0, 0) && region < REGIONS && page < REGION_PAGES.len(),
            Op::UnmapAll { domain } | Op::Renew { domain } => fits(domain, 0, 0),
            Op::Attach { device, domain } => fits(domain, device, 0),
            Op::AttachPasid { device, pasid, domain } => fits(domain, device, 0) && (1..=PASIDS).contains(&pasid),
            Op::DetachPasid { device, pasid } => fits(0, device, 0) && (1..=PASIDS).contains(&pasid),
            Op::Identity { device } | Op::Detach { device } | Op::Replug { device } | Op::Dma { device, .. } => {
                fits(0, device, 0)
            }
            Op::AttachNested { device, guest } => fits(0, device, guest) && machine.real_guests() > 0,
            Op::Guest { guest, .. } | Op::NewGuest { guest } => fits(0, 0, guest) && machine.real_guests() > 0,
            Op::TakeEvents { smmu } => smmu < machine.smmus,
        }
    }

    /// The same with less of it, for a shorter history.
    pub(super) fn simpler(&self) -> Vec<Op> {
        match *self {
            Op::Map { domain, first, count } if count > 1 => {
                (first..first + count).map(|first| Op::Map { domain, first, count: 1 }).collect()
            }
            Op::Unmap { domain, first, count, way } if count > 1 => {
                (first..first + count).map(|first| Op::Unmap { domain, first, count: 1, way }).collect()
            }
            Op::Dma { device, accesses } if accesses > 1 => vec![Op::Dma { device, accesses: accesses / 2 }],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::AtOnce => "",
            Way::Gathered => ", gathered",
            Way::Deferred => ", deferred",
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Map { domain, first, count } => write!(f, "map pages {first} + {count} of domain {domain}"),
            Op::Unmap { domain, first, count, way } => {
                write!(f, "unmap pages {first} + {count} of domain {domain}{way}")
            }
            Op::MapRegion { domain, region, block } => {
                write!(
                    f,
                    "map region {region} of domain {domain} {}",
                    if *block { "with a block" } else { "with pages" }
                )
            }
            Op::MapPage { domain, region, page } => {
                write!(f, "map page {} of region {region} of domain {domain}", REGION_PAGES[*page])
            }
            Op::UnmapRegion { domain, region, way } => write!(f, "unmap region {region} of domain {domain}{way}"),
            Op::UnmapAll { domain } => write!(f, "unmap all of domain {domain}"),
            Op::Renew { domain } => write!(f, "unmap all of domain {domain} and make it anew"),
            Op::Attach { device, domain } => write!(f, "attach device {device} to domain {domain}"),
            Op::Identity { device } => write!(f, "attach device {device} to identity"),
            Op::Detach { device } => write!(f, "detach device {device}"),
            Op::AttachPasid { device, pasid, domain } => {
                write!(f, "attach PASID {pasid} of device {device} to domain {domain}")
            }
            Op::DetachPasid { device, pasid } => write!(f, "detach PASID {pasid} of device {device}"),
            Op::AttachNested { device, guest } => write!(f, "attach device {device} to guest {guest}"),
            Op::Replug { device } => write!(f, "drop device {device} and add it again"),
            Op::Guest { guest, commands } => write!(f, "guest {guest} invalidates: {commands:?}"),
            Op::NewGuest { guest } => write!(f, "make guest {guest} anew"),
            Op::Dma { device, accesses } => write!(f, "{accesses} accesses of device {device}"),
            Op::TakeEvents { smmu } => write!(f, "take the events of SMMU {smmu}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {}: {}", self.thread, self.op)?;
        if self.seed != 0 { write!(f, " (seed {:#x})", self.seed) } else { Ok(()) }
    }
}
