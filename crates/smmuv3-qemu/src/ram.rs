//! Guest RAM: a file that QEMU and this process both map. The one module with `unsafe`.
//!
//! Devices and other threads change guest RAM at any time, so it is only ever seen as atomic 64-bit words, here as
//! in the driver.
//!
//! Why it is sound: [`Ram`] owns its mapping and never moves, resizes or unmaps it before it is dropped, and hands
//! out only borrows of itself. The file is private to this process and its QEMU (a name nobody can guess, and soon
//! none at all), was filled before it was mapped, and is never truncated; so every byte of the mapping is backed.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use memmap2::MmapRaw;
use smmuv3::platform::{DmaWindow, PhysAddr};

use crate::error::QemuError;

/// The whole of guest RAM.
///
/// # Invariants
/// - `map` is readable, writable and backed in full, for as long as `self`.
/// - `window` describes exactly `map`, rounded down to whole words.
#[derive(Debug)]
pub(crate) struct Ram {
    map: MmapRaw,
    window: DmaWindow,
}

impl Ram {
    /// Maps all of `file`, which the devices see at `base`, a multiple of 8.
    pub(crate) fn map(file: &File, base: PhysAddr) -> io::Result<Ram> {
        let map = MmapRaw::map_raw(file)?;
        let words = NonNull::new(map.as_mut_ptr().cast()).ok_or(io::Error::other("mapped at address 0"))?;
        // SAFETY: the mapping is page-aligned and lasts as long as the window, which `Ram` never lets out of itself
        // by value. Here and in QEMU it is accessed only as atomics or by emulated devices and CPUs.
        let window = unsafe { DmaWindow::from_raw_parts(words, map.len() / 8, base) };
        // INVARIANT: a shared writable mapping of the whole file; its backing is argued at the top of this file.
        Ok(Ram { map, window })
    }

    /// The driver's view of it.
    pub(crate) fn window(&self) -> &DmaWindow {
        &self.window
    }

    /// Copies the bytes at `addr` into `out`.
    pub(crate) fn read(&self, addr: PhysAddr, out: &mut [u8]) -> Result<(), QemuError> {
        let offset = self.check(addr, out.len())?;
        let mut position = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let (word, skip, count) = self.piece(position, rest.len());
            let bytes = word.load(Relaxed).to_le_bytes();
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&bytes[skip..skip + count]);
            rest = later;
            position += count;
        }
        Ok(())
    }

    /// Copies `data` to `addr`. Bytes beside it are left alone, even if a device writes them meanwhile.
    pub(crate) fn write(&self, addr: PhysAddr, data: &[u8]) -> Result<(), QemuError> {
        let mut position = self.check(addr, data.len())?;
        let mut rest = data;
        while !rest.is_empty() {
            let (word, skip, count) = self.piece(position, rest.len());
            let (now, later) = rest.split_at(count);
            let merge = |old: u64| {
                let mut bytes = old.to_le_bytes();
                bytes[skip..skip + count].copy_from_slice(now);
                u64::from_le_bytes(bytes)
            };
            if count == 8 {
                word.store(merge(0), Relaxed);
            } else {
                word.fetch_update(Relaxed, Relaxed, |old| Some(merge(old))).ok();
            }
            rest = later;
            position += count;
        }
        Ok(())
    }

    /// The offset of `addr`, if `len` bytes from there are inside.
    fn check(&self, addr: PhysAddr, len: usize) -> Result<usize, QemuError> {
        let size = self.window.size();
        addr.0
            .checked_sub(self.window.base().0)
            .filter(|offset| *offset <= size && len as u64 <= size - offset)
            .and_then(|offset| usize::try_from(offset).ok())
            .ok_or(QemuError::OutsideRam { addr, len, base: self.window.base(), size })
    }

    /// The word at byte `position`, how many of its bytes lie before `position`, and how many of the following
    /// `len` (at least 1) are in it.
    fn piece(&self, position: usize, len: usize) -> (&AtomicU64, usize, usize) {
        let skip = position % 8;
        (&self.words()[position / 8], skip, len.min(8 - skip))
    }

    fn words(&self) -> &[AtomicU64] {
        let start = self.map.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping is page-aligned, holds that many words, and lives as long as `self` (invariant 1); any
        // bits are a valid `AtomicU64`, and nobody in this process accesses it otherwise.
        unsafe { std::slice::from_raw_parts(start, self.map.len() / 8) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> Ram {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x1000).unwrap();
        Ram::map(&file, PhysAddr(0x4000_0000)).unwrap()
    }

    #[test]
    fn bytes_written_at_any_alignment_are_read_back_and_their_neighbours_are_untouched() {
        for start in 0..9 {
            for len in 0..20 {
                let ram = ram();
                let mut expected = [0xee; 64];
                ram.write(PhysAddr(0x4000_0000), &expected).unwrap();
                let data: Vec<u8> = (1..=len).collect();
                ram.write(PhysAddr(0x4000_0000 + start), &data).unwrap();
                expected[start as usize..][..data.len()].copy_from_slice(&data);

                let mut all = [0; 64];
                ram.read(PhysAddr(0x4000_0000), &mut all).unwrap();
                assert_eq!(all, expected, "{len} bytes at {start}");
                let mut part = vec![0; data.len()];
                ram.read(PhysAddr(0x4000_0000 + start), &mut part).unwrap();
                assert_eq!(part, data, "{len} bytes at {start}");
            }
        }
    }

    #[test]
    fn accesses_outside_ram_are_refused_by_name() {
        let ram = ram();
        for (addr, len) in [
            (0x3fff_fff8, 8),
            (0x3fff_fff8, 16),
            (0x4000_0ff9, 8),
            (0x4000_1000, 1),
            (0, 1),
            (u64::MAX, 1),
            (0x4000_0000, 0x1001),
        ] {
            assert!(ram.read(PhysAddr(addr), &mut vec![0; len]).is_err());
            assert!(ram.write(PhysAddr(addr), &vec![0; len]).is_err());
        }
        assert_eq!(
            ram.write(PhysAddr(0x4000_1000), &[1]).unwrap_err().to_string(),
            "0x1 bytes at 0x40001000 are not in guest RAM (0x40000000 + 0x1000)"
        );
        // Nothing at the very end is inside.
        assert!(ram.read(PhysAddr(0x4000_1000), &mut []).is_ok());
    }
}
