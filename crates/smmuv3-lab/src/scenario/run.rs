//! Carries out the steps, in the main list and in threads.

use std::sync::Barrier;
use std::time::Instant;

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use smmuv3::arch::{Command, Event, Prot, RawCommand, SyncSignal, TlbiAddr};
use smmuv3::platform::{Iova, PhysAddr};
use smmuv3::{GuestCommandFault, Kind, Owed, PagingDomain, PasidDomain};
use toml::Spanned;

use super::file::Threads;
use super::hardware::Hardware;
use super::lock;
use super::rig::Rig;
use super::step::{Action, Clear, ExpectOwed, GuestCommands, GuestInvalidate, Invalidate, Map, Set, Step, Unmap};
use crate::report::{Latency, Report};
use crate::session::PAGE;

/// How a step ended: well, or what is wrong.
pub(super) type Done = Result<(), String>;

const ATC_INV_EVERYTHING: u8 = 52;

impl<'f, H: Hardware> Rig<'f, H> {
    /// Runs all steps, until one goes wrong. The report tells.
    pub(super) fn run(mut self) -> Report {
        let file = self.file;
        let mut known_trouble = 0;
        for (number, step) in (1..).zip(&file.steps) {
            let line = self.source.line(step.span().start);
            println!("line {line}: {}", step.get_ref());
            let mut result = self.main_step(step.get_ref());
            let (trouble, what) = self.hardware.trouble();
            if trouble > known_trouble {
                known_trouble = trouble;
                result = Err(result.err().map_or(what.clone(), |also| format!("{what}; {also}")));
            }
            if let Err(what) = result {
                let path = self.source.path.display();
                let wrong = format!("{path}:{line}: step {number}, {}: {what}", step.get_ref());
                lock(&self.tally).report.wrong_step = Some(wrong.clone());
                self.surprise(wrong);
                break;
            }
        }
        self.finish()
    }

    fn surprise(&self, what: String) {
        lock(&self.tally).report.surprises.push(what);
    }

    fn finish(mut self) -> Report {
        // What is left goes; then nothing may be owed any more.
        self.devices.clear();
        if let Err(what) = self.no_events() {
            self.surprise(format!("at the end: {what}"));
        }
        let names = self.paging.keys().chain(self.sva.keys());
        for name in names.copied() {
            if let Some(owed) = self.owed(name).first() {
                self.surprise(format!("domain {name:?} still owes {:?}, with no device left", owed.key));
            }
        }
        let finished = {
            let mut tally = lock(&self.tally);
            tally.report.unmap_ns = Latency::of(std::mem::take(&mut tally.unmap_ns));
            self.hardware.finish(&mut tally.report)
        };
        if let Err(error) = finished {
            self.surprise(error.to_string());
        }
        std::mem::take(&mut lock(&self.tally).report)
    }

    /// A step of the main list: nothing else goes on.
    fn main_step(&mut self, step: &'f Step) -> Done {
        let target = step.target.get_ref().as_str();
        match &step.action {
            Action::RunThreads(_) => return self.run_threads(target),
            Action::RemoveDevice(_) => drop(self.device_mut(target)?.handle.take()),
            Action::RemoveSmmu(_) => self.remove_smmu(target)?,
            Action::Release(_) => self.release(target)?,
            Action::Show(_) => self.show(target),
            Action::ExpectOwed(expected) => self.expect_owed(target, expected)?,
            _ => self.step(step, true)?,
        }
        self.no_events()
    }

    /// A step that other steps may run beside, unless it is `alone`.
    fn step(&self, step: &'f Step, alone: bool) -> Done {
        let target = step.target.get_ref().as_str();
        match &step.action {
            Action::Map(map) => self.map(target, map),
            Action::Unmap(unmap) => self.unmap(target, unmap),
            Action::Set(set) => self.set(target, set),
            Action::Clear(clear) => self.clear(target, clear),
            Action::Invalidate(range) => self.invalidate(target, range),
            Action::GuestInvalidate(guest) => self.guest_invalidate(target, guest),
            Action::GuestCommands(guest) => self.guest_commands(target, guest),
            Action::Dma(dma) => self.dma(target, dma, alone),
            Action::Attach(attach) => {
                let (device, domain) = (self.device(target)?, attach.domain.get_ref().as_str());
                match self.nested.get(domain) {
                    Some(nested) => device.attach_nested(&nested.domain).map_err(text),
                    None => device.attach(self.paging(domain)?).map_err(text),
                }
            }
            Action::AttachIdentity(_) => self.device(target)?.attach_identity().map_err(text),
            Action::Detach(_) => self.device(target)?.detach().map_err(text),
            Action::AttachPasid(attach) => {
                let domain = attach.domain.get_ref().as_str();
                let domain = match self.sva.get(domain) {
                    Some(process) => PasidDomain::from(&process.domain),
                    None => PasidDomain::from(self.paging(domain)?),
                };
                self.device(target)?.attach_pasid(attach.pasid, domain).map_err(text)
            }
            Action::DetachPasid(detach) => self.device(target)?.detach_pasid(detach.pasid).map_err(text),
            Action::RemoveDevice(_)
            | Action::RemoveSmmu(_)
            | Action::Release(_)
            | Action::Show(_)
            | Action::ExpectOwed(_)
            | Action::RunThreads(_) => Err("it can't run beside other steps".into()),
        }
    }

    // --- tables ---

    fn map(&self, domain: &'f str, map: &'f Map) -> Done {
        let buffer = map.buffer.get_ref().as_str();
        let (at, pages) = self.buffer(buffer)?;
        self.paging(domain)?.map(Iova(map.iova), at, bytes(pages), map.access.into()).map_err(text)?;
        lock(&self.books).map(domain, map.iova, pages, buffer);
        Ok(())
    }

    fn unmap(&self, domain: &'f str, unmap: &Unmap) -> Done {
        let paging = self.paging(domain)?;
        let pages = match &unmap.pages {
            Some(pages) => *pages.get_ref(),
            None => lock(&self.books).pages_at(domain, unmap.iova),
        };
        if pages == 0 {
            return Err(format!("no buffer is mapped at {:#x}, expected one, or pages = ...", unmap.iova));
        }
        // Out of the books first: as soon as the driver has unmapped, another thread may map there.
        let gone = lock(&self.books).take(domain, unmap.iova, pages);
        self.count_atc_pages(&self.owed(domain), pages);
        let start = Instant::now();
        let done = paging.unmap(Iova(unmap.iova), bytes(pages)).map_err(text)?;
        let nanoseconds = start.elapsed().as_nanos() as u64;
        {
            let mut tally = lock(&self.tally);
            tally.unmap_ns.push(nanoseconds);
            tally.report.wait_rounds += u64::from(done.wait_rounds);
            tally.report.invalidations += u64::from(done.wait_rounds > 0);
        }
        if done.bytes < bytes(gone.len()) {
            return Err(format!("{:#x} bytes were mapped, expected {:#x}", done.bytes, bytes(gone.len())));
        }
        self.let_go(gone);
        Ok(())
    }

    fn set(&self, domain: &'f str, set: &'f Set) -> Done {
        let (iova, prot) = (*set.iova.get_ref(), Prot::from(set.access));
        if let (Some(nested), Some(ipa)) = (self.nested.get(domain), &set.ipa) {
            let mut guard = lock(&nested.table);
            let (table, memory) = guard.as_mut().ok_or("the guest has no stage 1")?;
            return table.set(iova, Some((*ipa.get_ref(), prot)), memory);
        }
        let process = self.sva.get(domain).ok_or("there is no such domain")?;
        let buffer = set.buffer.as_ref().map_or("", |buffer| buffer.get_ref());
        let (at, pages) = self.buffer(buffer)?;
        let mut guard = lock(&process.table);
        let (table, memory) = &mut *guard;
        (0..pages).try_for_each(|page| table.set(iova + bytes(page), Some((at.0 + bytes(page), prot)), memory))?;
        lock(&self.books).map(domain, iova, pages, buffer);
        Ok(())
    }

    fn clear(&self, domain: &'f str, clear: &Clear) -> Done {
        let (iova, pages) = (*clear.iova.get_ref(), *clear.pages.get_ref());
        let mut places = (0..pages).map(|page| iova + bytes(page));
        if let Some(nested) = self.nested.get(domain) {
            let mut guard = lock(&nested.table);
            let (table, memory) = guard.as_mut().ok_or("the guest has no stage 1")?;
            return places.try_for_each(|iova| table.set(iova, None, memory));
        }
        let process = self.sva.get(domain).ok_or("there is no such domain")?;
        let mut guard = lock(&process.table);
        let (table, memory) = &mut *guard;
        places.try_for_each(|iova| table.set(iova, None, memory))?;
        lock(&self.books).clear(domain, iova, pages);
        Ok(())
    }

    fn invalidate(&self, domain: &'f str, range: &Invalidate) -> Done {
        let process = self.sva.get(domain).ok_or("there is no such domain")?;
        let range = range.iova.as_ref().map(|iova| (*iova.get_ref(), *range.pages.get_ref()));
        // What is cleared from here on needs another invalidation.
        let gone = lock(&self.books).take_cleared(domain, range);
        self.count_atc_pages(&self.owed(domain), range.map_or(0, |(_, pages)| pages));
        let (iova, pages) = range.unwrap_or((0, 0));
        process.domain.invalidate(Iova(iova), bytes(pages), range.is_some()).map_err(text)?;
        self.let_go(gone);
        Ok(())
    }

    fn release(&mut self, domain: &'f str) -> Done {
        let process = self.sva.get(domain).ok_or("there is no such domain")?;
        process.domain.release().map_err(text)?;
        let gone = lock(&self.books).take_all(domain);
        for page in std::mem::take(&mut lock(&process.table).1.pages) {
            self.hardware.free(page);
        }
        self.let_go(gone);
        Ok(())
    }

    /// Frees the buffers that were mapped by nothing else.
    fn let_go(&self, mappings: Vec<&'f str>) {
        let free = lock(&self.books).drop_mappings(mappings);
        for buffer in free {
            if let Some(at) = lock(&self.buffers).remove(buffer) {
                self.hardware.free(at);
            }
        }
    }

    /// Pages that ATC_INVs for a range are asked to cover. Those for everything (`AtsFull`) have no number.
    fn count_atc_pages(&self, owed: &[Owed], pages: usize) {
        let atcs = owed.iter().filter(|owed| owed.key.kind() == Kind::Ats).count();
        lock(&self.tally).report.atc_pages_requested += (atcs * pages) as u64;
    }

    // --- guests ---

    fn guest_invalidate(&self, vsmmu: &str, guest: &GuestInvalidate) -> Done {
        let vsmmu = self.vsmmus.get(vsmmu).ok_or("there is no such vSMMU")?;
        let addr = *guest.iova.get_ref();
        let sync = Command::Sync(SyncSignal::None);
        let tlbi = Command::TlbiNhVa { vmid: 0, asid: guest.asid, addr: TlbiAddr { addr, leaf: false, range: None } };
        let mut commands = vec![tlbi.encode(), sync.encode()];
        if let Some(sid) = &guest.stream {
            let forget = Command::AtcInv { sid: *sid.get_ref(), ssid: None, global: false, addr, size: 0 };
            commands.extend([forget.encode(), sync.encode()]);
            lock(&self.tally).report.atc_pages_requested += 1;
        }
        vsmmu.invalidate(&commands).map_err(text)
    }

    fn guest_commands(&self, vsmmu: &str, guest: &GuestCommands) -> Done {
        let vsmmu = self.vsmmus.get(vsmmu).ok_or("there is no such vSMMU")?;
        let commands: Vec<_> = guest.raw.iter().map(|words| RawCommand(*words)).collect();
        for command in commands.iter().take(guest.refused.unwrap_or(usize::MAX)) {
            if let Ok(Command::AtcInv { size, .. }) = command.decode()
                && size < ATC_INV_EVERYTHING
            {
                lock(&self.tally).report.atc_pages_requested += 1 << size;
            }
        }
        match (vsmmu.invalidate(&commands), guest.refused) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(index)) => {
                Err(format!("all commands were carried out, expected command {index} to be refused"))
            }
            (Err(error), Some(index))
                if error.index == index && !matches!(error.cause, GuestCommandFault::Hardware(_)) =>
            {
                println!("    {error}");
                Ok(())
            }
            (Err(error), _) => Err(error.to_string()),
        }
    }

    // --- what is owed ---

    /// The invalidation array of an s1, s2 or sva domain.
    fn owed(&self, domain: &str) -> Vec<Owed> {
        let mut all = Vec::new();
        if let Some(paging) = self.paging.get(domain) {
            paging.owed(|owed| all.push(owed));
        } else if let Some(process) = self.sva.get(domain) {
            process.domain.owed(|owed| all.push(owed));
        }
        all
    }

    fn smmu_name(&self, index: u8) -> &'f str {
        self.file.smmu.get(usize::from(index)).map_or("?", |smmu| smmu.name.get_ref())
    }

    fn show(&self, domain: &str) {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY).set_header(["SMMU", "kind", "id", "SSID", "users"]);
        for Owed { key, users } in self.owed(domain) {
            table.add_row([
                self.smmu_name(key.smmu()).to_owned(),
                format!("{:?}", key.kind()),
                format!("{:#x}", key.id()),
                format!("{:#x}", key.ssid()),
                users.to_string(),
            ]);
        }
        println!("{table}");
    }

    fn expect_owed(&self, domain: &str, expected: &ExpectOwed) -> Done {
        let owed = self.owed(domain);
        let fits = owed.len() == expected.entries.len()
            && owed.iter().zip(&expected.entries).all(|(Owed { key, users }, entry)| {
                usize::from(key.smmu()) == self.file.smmu_index(entry.smmu.as_ref())
                    && key.kind() == entry.kind.into()
                    && entry.id.is_none_or(|id| id == key.id())
                    && (key.ssid(), *users) == (entry.ssid, entry.users)
            });
        if fits {
            return Ok(());
        }
        let found: Vec<_> = owed.iter().map(|Owed { key, users }| format!("{key:?} ×{users}")).collect();
        Err(format!("it owes [{}], expected {} entries as listed", found.join(", "), expected.entries.len()))
    }

    // --- threads ---

    fn run_threads(&self, group: &str) -> Done {
        let threads: Vec<&'f Threads> =
            self.file.threads.iter().filter(|threads| threads.group.get_ref() == group).collect();
        let start = Barrier::new(threads.len());
        let results: Vec<Done> = std::thread::scope(|scope| {
            let run = |threads: &&'f Threads| {
                let (threads, start) = (*threads, &start);
                scope.spawn(move || {
                    start.wait();
                    self.run_thread(threads)
                })
            };
            let running: Vec<_> = threads.iter().map(run).collect();
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into())))
                .collect()
        });
        results.into_iter().collect::<Done>()?;
        let refuses = |step: &Spanned<Step>| matches!(&step.get_ref().action, Action::Dma(dma) if dma.fault.is_some());
        if threads.iter().any(|threads| threads.steps.iter().any(refuses)) {
            // Whose events they are, nobody can say; some may be lost.
            self.drop_events();
            return Ok(());
        }
        self.no_events()
    }

    fn run_thread(&self, threads: &'f Threads) -> Done {
        for round in 1..=threads.repeat {
            for step in &threads.steps {
                self.step(step.get_ref(), false).map_err(|what| {
                    let line = self.source.line(step.span().start);
                    format!("line {line}, round {round}, {}: {what}", step.get_ref())
                })?;
            }
            // The locks of the model are not fair.
            std::thread::yield_now();
        }
        Ok(())
    }

    // --- odds and ends ---

    fn remove_smmu(&mut self, name: &str) -> Done {
        let index = self.file.smmu.iter().position(|smmu| smmu.name.get_ref() == name);
        let place = index.and_then(|index| self.smmus.get_mut(index)).ok_or("there is no such SMMU")?;
        let smmu = place.as_ref().ok_or("the SMMU was removed before")?;
        self.iommu.remove_smmu(smmu).map_err(text)?;
        *place = None;
        Ok(())
    }

    fn device(&self, name: &str) -> Result<&smmuv3::Device<H::Platform>, String> {
        let device = self.devices.get(name).ok_or("there is no such device")?;
        Ok(device.handle.as_ref().ok_or("the device was removed before")?)
    }

    fn device_mut(&mut self, name: &str) -> Result<&mut super::rig::Device<'f, H>, String> {
        Ok(self.devices.get_mut(name).ok_or("there is no such device")?)
    }

    fn paging(&self, name: &str) -> Result<&PagingDomain<H::Platform>, String> {
        Ok(self.paging.get(name).ok_or("there is no such domain")?)
    }

    /// Where a buffer is, and its pages. It is allocated if it isn't there.
    pub(super) fn buffer(&self, name: &'f str) -> Result<(PhysAddr, usize), String> {
        let buffer = self.file.buffer(name).ok_or("there is no such buffer")?;
        let pages = *buffer.pages.get_ref();
        let mut buffers = lock(&self.buffers);
        if let Some(at) = buffers.get(name) {
            return Ok((*at, pages));
        }
        let at = self.hardware.alloc(pages, *buffer.align.get_ref()).ok_or("out of memory for the buffer")?;
        buffers.insert(name, at);
        Ok((at, pages))
    }

    /// Takes the events of all SMMUs, each with the SMMU's index.
    pub(super) fn take_events(&self) -> Result<Vec<(usize, Event)>, String> {
        let mut events = Vec::new();
        for (index, smmu) in self.smmus.iter().enumerate() {
            let Some(smmu) = smmu else { continue };
            if smmu.take_events(|event| events.push((index, event))).overflow {
                return Err(format!("the event queue of SMMU {index} overflowed"));
            }
            let errors = smmu.take_global_errors();
            if !errors.is_empty() {
                return Err(format!("SMMU {index} has a global error: {errors}"));
            }
        }
        Ok(events)
    }

    /// There must be none.
    pub(super) fn no_events(&self) -> Done {
        match self.take_events()?.first() {
            None => Ok(()),
            Some((smmu, event)) => Err(format!("SMMU {smmu} recorded an unexpected event: {event}")),
        }
    }

    fn drop_events(&self) {
        for smmu in self.smmus.iter().flatten() {
            let _ = smmu.take_events(drop);
            let _ = smmu.take_global_errors();
        }
    }
}

fn bytes(pages: usize) -> u64 {
    (pages * PAGE) as u64
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
