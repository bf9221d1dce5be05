//! One SMMU: its state, the lock around it, and the path of a device's access through it to memory.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use smmuv3::arch::regs::offset::CMDQ_CONS;
use smmuv3::arch::{Command, Features, IdRegs, RawCommand};
use smmuv3::platform::PhysAddr;

use crate::atc::Function;
use crate::ats::Outstanding;
use crate::command::CommandCounts;
use crate::config::ConfigCache;
use crate::fault::{DmaError, Fault, Request};
use crate::latency::{Clock, Glance, Latency};
use crate::laziness::Laziness;
use crate::memory::{Memory, Owner, PAGE, PageState, lock};
use crate::oracle::{Oracle, SmmuReport, StaleAccess};
use crate::posted::Posted;
use crate::queue::CMDQ;
use crate::regs::Regs;
use crate::rng::Rng;
use crate::setup::{Ecmdqs, ModelSmmuConfig};
use crate::tlb::{Map, Tlb};
use crate::walk::{Output, Source};

/// Commands that the log keeps.
pub(crate) const COMMAND_LOG: usize = 4096;

/// An interrupt of an SMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Irq {
    /// The Event queue was empty and is not any more.
    EventQueue,
    /// A global error became active.
    Gerror,
}

/// A step that the driver takes and the SMMU ignores, as if the driver had left it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sabotage {
    /// TLBI commands with an address.
    IgnoreTlbiByAddress,
    /// TLBI commands without an address: by ASID, by VMID, all.
    IgnoreTlbiByTag,
    /// TLBI commands with an address leave walk caches alone, as if `Leaf` were 1.
    TreatTlbiAsLeaf,
    /// TLBI_NH_ALL, the clearing of stage 1 after a change of stage 2. Other commands work.
    IgnoreNhAll,
    /// CFGI commands.
    IgnoreCfgi,
    /// CMD_SYNC is consumed and signalled, and completes nothing.
    IgnoreSync,
    /// A CMD_SYNC does so if ATC_INV or TLBI_NH_ALL is next in the queue: those that order the steps of an
    /// invalidation.
    IgnoreInnerSync,
    /// ATC_INV.
    IgnoreAtcInv,
    /// The messages of CMD_SYNCs.
    LoseMessages,
}

/// What is called for interrupts, on the thread whose access led to them.
pub(crate) type Hook = Arc<dyn Fn(Irq) + Send + Sync>;

/// An SMMU behind its lock.
pub(crate) struct Smmu {
    unit: Mutex<Unit>,
    clock: Arc<Clock>,
    glances: Arc<[Glance]>,
    ecmdqs: Option<Ecmdqs>,
    hook: RwLock<Option<Hook>>,
}

/// All state of an SMMU.
pub(crate) struct Unit {
    pub index: usize,
    pub memory: Arc<Memory>,
    pub oracle: Arc<Oracle>,
    pub ids: IdRegs,
    pub features: Features,
    pub laziness: Laziness,
    pub latency: Latency,
    pub clock: Arc<Clock>,
    /// What is seen of each Command queue without the lock.
    pub glances: Arc<[Glance]>,
    pub ecmdqs: Option<Ecmdqs>,
    /// The queue whose commands are just consumed.
    pub queue: usize,
    pub regs: Regs,
    pub configs: ConfigCache,
    pub tlb: Tlb,
    pub rng: Rng,
    pub sabotage: HashSet<Sabotage>,
    /// Consumes no commands any more.
    pub dead: bool,
    /// Commands that each look consumes at most.
    pub commands_per_look: Option<u32>,
    pub log: VecDeque<RawCommand>,
    pub commands: CommandCounts,
    pub ecmdq_commands: u64,
    pub syncs: u64,
    pub events: u64,
    pub events_lost: u64,
    pub walks: u64,
    pub atc_pages: u64,
    pub atc_everything: u64,
    pub atc_to_disabled: u64,
    pub atc_timeouts: u64,
    pub ats_requests: u64,
    pub translated: u64,
    /// The PCIe functions, by StreamID.
    pub functions: Map<u32, Function>,
    /// Queues, and StreamIDs whose ATC has entries that they have doomed.
    pub doomed_atcs: Vec<(usize, u32)>,
    pub outstanding: Vec<Outstanding>,
    /// Writes on their way, in the order in which they were posted.
    pub posted: Vec<Posted>,
    /// Some transactions of late.
    pub recent: Vec<Request>,
    /// Interrupts to deliver once the lock is free.
    pub irqs: Vec<Irq>,
}

/// What a device moves.
pub(crate) enum Transfer<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
    /// A write that need not have reached memory when it ends.
    Post(&'a [u8]),
}

impl Smmu {
    pub(crate) fn new(
        index: usize,
        config: &ModelSmmuConfig,
        seed: u64,
        memory: Arc<Memory>,
        oracle: Arc<Oracle>,
        clock: Arc<Clock>,
    ) -> Self {
        let ids = config.id_regs();
        let mut rng = Rng::new(seed ^ (index as u64) << 32);
        let ecmdqs = config.ecmdqs;
        assert!(ecmdqs.is_none() || config.msi && config.coherent, "IDR1.ECMDQ needs MSI and COHACC (§6.3.2)");
        let queues = 1 + ecmdqs.map_or(0, Ecmdqs::count);
        let glances: Arc<[_]> = (0..queues).map(|_| Glance::default()).collect();
        let mut unit = Unit {
            index,
            memory,
            oracle,
            ids,
            features: Features::from(ids),
            laziness: config.laziness.clone(),
            latency: config.latency,
            clock: clock.clone(),
            glances: glances.clone(),
            ecmdqs,
            regs: Regs::at_reset(&mut rng, queues),
            queue: CMDQ,
            configs: ConfigCache::default(),
            tlb: Tlb::new(config.laziness.tlb_entries),
            rng,
            sabotage: HashSet::new(),
            dead: false,
            commands_per_look: None,
            log: VecDeque::new(),
            commands: CommandCounts::none(),
            ecmdq_commands: 0,
            syncs: 0,
            events: 0,
            events_lost: 0,
            walks: 0,
            atc_pages: 0,
            atc_everything: 0,
            atc_to_disabled: 0,
            atc_timeouts: 0,
            ats_requests: 0,
            translated: 0,
            functions: Map::default(),
            doomed_atcs: Vec::new(),
            outstanding: Vec::new(),
            posted: Vec::new(),
            recent: Vec::new(),
            irqs: Vec::new(),
        };
        if unit.laziness.junk_at_reset {
            unit.fill_configs_with_junk();
            let (base, pages) = (unit.memory.base(), unit.memory.size() / PAGE);
            unit.tlb.fill_with_junk(&mut unit.rng, |rng| base + rng.below(pages) * PAGE);
        }
        Smmu { unit: Mutex::new(unit), clock, glances, ecmdqs, hook: RwLock::new(None) }
    }

    /// Does something with the SMMU, then delivers the interrupts that it led to.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Unit) -> R) -> R {
        let mut unit = lock(&self.unit);
        let result = f(&mut unit);
        let irqs = std::mem::take(&mut unit.irqs);
        drop(unit);
        if !irqs.is_empty() {
            let hook = self.hook.read().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(hook) = hook {
                irqs.into_iter().for_each(|irq| hook(irq));
            }
        }
        result
    }

    /// The register at `offset`, if it is CONS of a Command queue and known without the lock.
    pub(crate) fn glance(&self, offset: usize) -> Option<u32> {
        let queue = match offset {
            CMDQ_CONS => CMDQ,
            _ => self.ecmdqs?.cons_at(offset)?,
        };
        self.glances[queue].cons(&self.clock)
    }

    /// Does what is due, in any queue.
    pub(crate) fn attend(&self) {
        if self.glances.iter().any(|glance| glance.cons(&self.clock).is_none()) {
            self.with(Unit::look);
        }
    }

    /// Bytes of registers.
    pub(crate) fn size(&self) -> usize {
        self.ecmdqs.map_or(0x2_0000, |ecmdqs| ecmdqs.end())
    }

    pub(crate) fn set_hook(&self, hook: Option<Hook>) {
        *self.hook.write().unwrap_or_else(PoisonError::into_inner) = hook;
    }

    /// A device's access, which lies within one page.
    ///
    /// For all but posted writes, translation and access are one step under the lock: wholly before or wholly after the
    /// completion of a CMD_SYNC.
    pub(crate) fn dma(&self, request: &Request, transfer: Transfer<'_>) -> Result<(), DmaError> {
        self.with(|unit| {
            if unit.commands_per_look.is_some() || unit.timed() {
                unit.look();
            }
            unit.some_posted_arrive();
            unit.remember(request);
            if unit.rng.one_in(64) {
                unit.speculate();
            }
            if request.ats {
                return unit.ats_access(request, transfer);
            }
            match unit.translate(request) {
                Ok(output) => unit.finish(request, &output, transfer),
                Err(fault) => unit.terminate(&fault, transfer),
            }
        })
    }
}

impl Unit {
    pub(crate) fn violation(&self, what: String) {
        self.oracle.violation(format!("SMMU {}: {what}", self.index));
    }

    pub(crate) fn sabotaged(&self, what: Sabotage) -> bool {
        !self.sabotage.is_empty() && self.sabotage.contains(&what)
    }

    /// The address of some page of RAM.
    pub(crate) fn some_page(&mut self) -> u64 {
        self.memory.base() + self.rng.below(self.memory.size() / PAGE) * PAGE
    }

    /// Reads a word of a structure, for a transaction or (`None`) for the SMMU itself. `None`: there is no memory.
    pub(crate) fn fetch(&self, addr: u64, request: Option<&Request>, what: &'static str) -> Option<u64> {
        let value = self.own_read(addr)?;
        self.check_walk(addr, request, false, what);
        Some(value)
    }

    /// A word as the SMMU reads it for itself.
    pub(crate) fn own_read(&self, addr: u64) -> Option<u64> {
        match self.features.coherent {
            true => self.memory.read_u64(addr),
            false => self.memory.read_uncached(addr),
        }
    }

    /// Writes a word as the SMMU does for itself. False: there is no memory.
    pub(crate) fn own_write(&self, addr: u64, value: u64) -> bool {
        match self.features.coherent {
            true => self.memory.write_u64(addr, value),
            false => self.memory.write_uncached(addr, value),
        }
    }

    /// Checks a write that the SMMU makes for itself.
    pub(crate) fn check_own_access(&self, addr: u64, what: &'static str) {
        self.check_walk(addr, None, true, what);
    }

    fn check_walk(&self, addr: u64, request: Option<&Request>, write: bool, what: &'static str) {
        let Some(page) = self.memory.page(addr).filter(|page| page.owner == Owner::Free) else { return };
        self.oracle.stale_walk(|| StaleAccess {
            smmu: self.index,
            sid: request.map(|request| request.sid),
            ssid: request.and_then(|request| request.ssid),
            iova: request.map_or(0, |request| request.iova),
            pa: PhysAddr(addr),
            write,
            history: vec![describe(page), format!("tick {}: the SMMU accessed it as {what}", self.memory.tick())],
        });
    }

    /// What comes after translation.
    pub(crate) fn finish(
        &mut self,
        request: &Request,
        output: &Output,
        transfer: Transfer<'_>,
    ) -> Result<(), DmaError> {
        if let Transfer::Post(data) = transfer {
            return self.post(request, output, data);
        }
        self.push_posted(request.sid);
        self.touch(request, output, transfer, None)
    }

    /// The access itself, once it is translated, and the oracle's judgement. `posted`: when it was translated, if not
    /// just now.
    pub(crate) fn touch(
        &mut self,
        request: &Request,
        output: &Output,
        transfer: Transfer<'_>,
        posted: Option<u64>,
    ) -> Result<(), DmaError> {
        let Some(before) = self.memory.page(output.pa) else { return Err(DmaError::NoMemory(PhysAddr(output.pa))) };
        let done = match transfer {
            Transfer::Read(buf) => self.memory.read(output.pa, buf),
            Transfer::Write(buf) | Transfer::Post(buf) => self.memory.write(output.pa, buf),
        };
        let after = self.memory.page(output.pa).unwrap_or(before);
        self.oracle.dma();
        let reused = match output.source {
            // Memory that was given out again after the entry was filled is not what the entry was meant for.
            Source::Tlb(hit) => before.since > hit.origin.filled,
            Source::Atc(entry) => entry.from.is_some_and(|hit| before.since > hit.origin.filled),
            Source::Disabled | Source::Bypass => false,
        };
        if before.owner != Owner::Data || reused || after != before {
            self.oracle.stale_dma(|| {
                let mut history = vec![];
                match output.source {
                    Source::Tlb(hit) => history.push(hit.to_string()),
                    Source::Atc(entry) => {
                        history.extend(entry.from.map(|hit| hit.to_string()));
                        history.push(entry.to_string());
                    }
                    Source::Disabled | Source::Bypass => {}
                }
                history
                    .extend(posted.map(|issued| format!("tick {issued}: a write was translated by {}", output.source)));
                history.push(describe(before));
                if after != before {
                    history.push(format!("{}, during the access", describe(after)));
                }
                history.push(match posted {
                    None => format!("tick {}: the device accessed it through {}", self.memory.tick(), output.source),
                    Some(_) => format!("tick {}: that write reached it", self.memory.tick()),
                });
                StaleAccess {
                    smmu: self.index,
                    sid: Some(request.sid),
                    ssid: request.ssid,
                    iova: request.iova,
                    pa: PhysAddr(output.pa),
                    write: request.write,
                    history,
                }
            });
        }
        if done { Ok(()) } else { Err(DmaError::NoMemory(PhysAddr(output.pa))) }
    }

    pub(crate) fn terminate(&mut self, fault: &Fault, transfer: Transfer<'_>) -> Result<(), DmaError> {
        if let (Some(event), true) = (&fault.event, fault.record) {
            self.record(event);
        }
        if fault.quiet {
            if let Transfer::Read(buf) = transfer {
                buf.fill(0);
            }
            return Ok(());
        }
        Err(DmaError::Aborted(fault.event))
    }

    pub(crate) fn take_log(&mut self) -> Vec<Command> {
        // They were legal.
        self.log.drain(..).filter_map(|raw| raw.decode().ok()).collect()
    }

    pub(crate) fn report(&self) -> SmmuReport {
        SmmuReport {
            commands: self.commands.by_mnemonic(),
            ecmdq_commands: self.ecmdq_commands,
            syncs: self.syncs,
            events: self.events,
            events_lost: self.events_lost,
            walks: self.walks,
            tlb_entries: self.tlb.len(),
            atc_entries: self.functions.values().map(Function::len).sum(),
            atc_pages: self.atc_pages,
            atc_everything: self.atc_everything,
            atc_to_disabled: self.atc_to_disabled,
            atc_timeouts: self.atc_timeouts,
            ats_requests: self.ats_requests,
            translated: self.translated,
        }
    }

    pub(crate) fn clear_counts(&mut self) {
        self.commands = CommandCounts::none();
        for counter in [&mut self.syncs, &mut self.events, &mut self.events_lost, &mut self.walks] {
            *counter = 0;
        }
        self.ecmdq_commands = 0;
        (self.atc_pages, self.atc_everything, self.atc_to_disabled) = (0, 0, 0);
        (self.atc_timeouts, self.ats_requests, self.translated) = (0, 0, 0);
    }
}

fn describe(page: PageState) -> String {
    let what = match page.owner {
        Owner::Free if page.since == 0 => "the page was never given out",
        Owner::Free => "the page was freed",
        Owner::Driver => "the page was given to the driver",
        Owner::Data => "the page was given out as data",
    };
    format!("tick {}: {what}", page.since)
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Source::Disabled => "a disabled SMMU",
            Source::Bypass => "a bypass STE",
            Source::Tlb(_) => "that entry",
            Source::Atc(_) => "that entry of its ATC",
        })
    }
}
