//! Known contents of disks: the image and its runner (`xtask`, which includes this file) both know what must stand where.

/// What a disk holds before the image has run, if `after` is false, and what the image is to write. Word `index` of disk number `disk`.
pub fn word(disk: u64, after: bool, index: u64) -> u64 {
    // splitmix64: a different word everywhere, on every disk, before and after.
    let mut x = (disk << 1 | u64::from(after)) << 56 ^ index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Fills `bytes`, which stand at `offset` bytes of the disk. Both are multiples of 8.
pub fn fill(disk: u64, after: bool, offset: u64, bytes: &mut [u8]) {
    for (index, bytes) in (offset / 8..).zip(bytes.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word(disk, after, index).to_le_bytes());
    }
}

/// The first byte, counted from the beginning of the disk, of a word that is not as it should be.
pub fn first_difference(disk: u64, after: bool, offset: u64, bytes: &[u8]) -> Option<u64> {
    let wrong = |(index, bytes): &(u64, &[u8])| **bytes != word(disk, after, *index).to_le_bytes();
    (offset / 8..).zip(bytes.chunks_exact(8)).find(wrong).map(|(index, _)| index * 8)
}
