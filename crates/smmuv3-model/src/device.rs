//! Devices: DMA through an SMMU, one access at a time or from a thread that never stops.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use smmuv3::platform::Iova;

use crate::fault::{DmaError, Request};
use crate::memory::{PAGE, lock};
use crate::rng::Rng;
use crate::smmu::{Smmu, Transfer};

/// A requester behind an SMMU: a StreamID, and a SubstreamID if it uses one.
#[derive(Clone)]
pub struct Device {
    smmu: Arc<Smmu>,
    sid: u32,
    ssid: Option<u32>,
}

impl Device {
    pub(crate) fn new(smmu: Arc<Smmu>, sid: u32) -> Self {
        Device { smmu, sid, ssid: None }
    }

    /// The same device, issuing its transactions with a SubstreamID (PASID).
    pub fn with_ssid(&self, ssid: u32) -> Device {
        Device { smmu: self.smmu.clone(), sid: self.sid, ssid: Some(ssid) }
    }

    /// The StreamID.
    pub fn sid(&self) -> u32 {
        self.sid
    }

    /// Reads from `iova`. An access that crosses a multiple of 4096 is several: what came before the one that failed
    /// is in `buf`.
    pub fn read(&self, iova: Iova, buf: &mut [u8]) -> Result<(), DmaError> {
        self.read_pieces(iova, buf, false)
    }

    /// Writes to `iova`, in pieces as [`read`](Self::read) does.
    pub fn write(&self, iova: Iova, buf: &[u8]) -> Result<(), DmaError> {
        self.write_pieces(iova, buf, false, false)
    }

    /// Writes to `iova` without waiting for it, in pieces as [`read`](Self::read). A piece that is translated may reach memory
    /// at any time until a CMD_SYNC completes an invalidation of what translated it, or the device does anything else
    /// than to post. `Ok` says that it was translated.
    pub fn post(&self, iova: Iova, buf: &[u8]) -> Result<(), DmaError> {
        self.write_pieces(iova, buf, false, true)
    }

    /// All that the function has posted reaches memory.
    pub fn drain(&self) {
        self.smmu.with(|unit| unit.push_posted(self.sid));
    }

    /// Reads with ATS: where the ATC has no entry that allows it, a translation request comes first; then a translated
    /// access, straight to the physical address. In pieces as [`read`](Self::read).
    pub fn ats_read(&self, iova: Iova, buf: &mut [u8]) -> Result<(), DmaError> {
        self.read_pieces(iova, buf, true)
    }

    /// Writes with ATS, as [`ats_read`](Self::ats_read) reads.
    pub fn ats_write(&self, iova: Iova, buf: &[u8]) -> Result<(), DmaError> {
        self.write_pieces(iova, buf, true, false)
    }

    /// Writes with ATS without waiting for it, as [`post`](Self::post).
    pub fn ats_post(&self, iova: Iova, buf: &[u8]) -> Result<(), DmaError> {
        self.write_pieces(iova, buf, true, true)
    }

    fn read_pieces(&self, iova: Iova, buf: &mut [u8], ats: bool) -> Result<(), DmaError> {
        let mut done = 0;
        while done < buf.len() {
            let (at, count) = piece(iova, done, buf.len());
            let request = Request { sid: self.sid, ssid: self.ssid, iova: at, write: false, ats, afresh: false };
            self.smmu.dma(&request, Transfer::Read(&mut buf[done..done + count]))?;
            done += count;
        }
        Ok(())
    }

    fn write_pieces(&self, iova: Iova, buf: &[u8], ats: bool, posted: bool) -> Result<(), DmaError> {
        let mut done = 0;
        while done < buf.len() {
            let (at, count) = piece(iova, done, buf.len());
            let request = Request { sid: self.sid, ssid: self.ssid, iova: at, write: true, ats, afresh: false };
            let data = &buf[done..done + count];
            self.smmu.dma(&request, if posted { Transfer::Post(data) } else { Transfer::Write(data) })?;
            done += count;
        }
        Ok(())
    }

    /// Reads eight bytes.
    pub fn read_u64(&self, iova: Iova) -> Result<u64, DmaError> {
        let mut buf = [0; 8];
        self.read(iova, &mut buf)?;
        Ok(u64::from_le_bytes(buf))
    }

    /// Writes eight bytes.
    pub fn write_u64(&self, iova: Iova, value: u64) -> Result<(), DmaError> {
        self.write(iova, &value.to_le_bytes())
    }

    /// Reads eight bytes with ATS.
    pub fn ats_read_u64(&self, iova: Iova) -> Result<u64, DmaError> {
        let mut buf = [0; 8];
        self.ats_read(iova, &mut buf)?;
        Ok(u64::from_le_bytes(buf))
    }

    /// Writes eight bytes with ATS.
    pub fn ats_write_u64(&self, iova: Iova, value: u64) -> Result<(), DmaError> {
        self.ats_write(iova, &value.to_le_bytes())
    }
}

/// The address and length of the next piece.
fn piece(iova: Iova, done: usize, len: usize) -> (u64, usize) {
    let at = iova.0.wrapping_add(done as u64);
    let to_page_end = (PAGE - at % PAGE) as usize;
    (at, to_page_end.min(len - done))
}

/// The addresses that device threads access, for the test to change while they run.
#[derive(Debug, Clone, Default)]
pub struct Targets(Arc<Mutex<Vec<Iova>>>);

impl Targets {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an address: eight bytes from there are read and written.
    pub fn add(&self, iova: Iova) {
        lock(&self.0).push(iova);
    }

    /// Removes an address. Accesses that have begun go on; new ones may follow from a thread that has just chosen it.
    pub fn remove(&self, iova: Iova) {
        lock(&self.0).retain(|&target| target != iova);
    }

    fn pick(&self, rng: &mut Rng) -> Option<Iova> {
        let targets = lock(&self.0);
        (!targets.is_empty()).then(|| targets[rng.below(targets.len() as u64) as usize])
    }
}

/// What a device thread did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Accesses tried.
    pub accesses: u64,
    /// Those that ended in a fault: no failure by itself.
    pub faults: u64,
    /// Those that ended well and used ATS.
    pub translated: u64,
}

/// How the accesses of a device thread are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Traffic {
    /// Each through the SMMU.
    #[default]
    Untranslated,
    /// Each with ATS, and none while ATS is off (which counts as a fault).
    Ats,
    /// Either at random; while ATS is off, all through the SMMU.
    Mixed,
}

/// A thread that reads and writes random targets until it is stopped. Its writes are [posted](Device::post).
pub struct DeviceThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    accesses: AtomicU64,
    faults: AtomicU64,
    translated: AtomicU64,
}

impl DeviceThread {
    /// Starts it. What it accesses, and whether it reads or writes, follows from `seed`.
    pub fn start(device: Device, targets: Targets, seed: u64) -> Self {
        Self::start_with(device, targets, seed, Traffic::Untranslated)
    }

    /// Starts it, with the given kind of accesses.
    pub fn start_with(device: Device, targets: Targets, seed: u64, traffic: Traffic) -> Self {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || {
                let mut rng = Rng::new(seed);
                while !shared.stop.load(Relaxed) {
                    let Some(iova) = targets.pick(&mut rng) else {
                        std::thread::yield_now();
                        continue;
                    };
                    let value = rng.one_in(2).then(|| rng.next());
                    let plain = || match value {
                        None => device.read_u64(iova).map(drop),
                        Some(value) => device.post(iova, &value.to_le_bytes()),
                    };
                    let ats = || match value {
                        None => device.ats_read_u64(iova).map(drop),
                        Some(value) => device.ats_post(iova, &value.to_le_bytes()),
                    };
                    let uses_ats = match traffic {
                        Traffic::Untranslated => false,
                        Traffic::Ats => true,
                        Traffic::Mixed => rng.one_in(2),
                    };
                    let result = match if uses_ats { ats() } else { plain() } {
                        Err(DmaError::AtsOff) if traffic == Traffic::Mixed => plain(),
                        result => {
                            shared.translated.fetch_add((uses_ats && result.is_ok()).into(), Relaxed);
                            result
                        }
                    };
                    shared.faults.fetch_add(result.is_err().into(), Relaxed);
                    if shared.accesses.fetch_add(1, Relaxed).is_multiple_of(32) {
                        // Locks are not fair: let the driver's threads have theirs.
                        std::thread::yield_now();
                    }
                }
                device.drain();
            }
        });
        DeviceThread { shared, thread: Some(thread) }
    }

    /// What it did so far: a test that needs the device to be active at some point waits for this to move.
    pub fn stats(&self) -> DeviceStats {
        DeviceStats {
            accesses: self.shared.accesses.load(Relaxed),
            faults: self.shared.faults.load(Relaxed),
            translated: self.shared.translated.load(Relaxed),
        }
    }

    /// Stops it and tells what it did. All its accesses are over then.
    pub fn stop(mut self) -> DeviceStats {
        self.join();
        self.stats()
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there is reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.join();
    }
}
