//! What the controller and its namespace say of themselves.

use super::{PAGE, prp};

/// What the controller and its namespace say of themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeInfo {
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// The longest transfer in bytes: the controller's own limit (MDTS), or less where the PRP list is full before.
    pub max_transfer: usize,
    /// Whether there is a volatile write cache (VWC), so that data is safe only after
    /// [`Nvme::flush`](super::Nvme::flush).
    pub volatile_write_cache: bool,
    /// The size of the namespace in blocks.
    pub blocks: u64,
    /// The size of a block in bytes.
    pub block_size: usize,
}

/// Reads the answers to Identify Controller and Identify Namespace.
pub(super) fn parse(controller: &[u8; PAGE], namespace: &[u8; PAGE]) -> NvmeInfo {
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.trim_matches([' ', '\0']).to_owned()
    };
    // MDTS: a power of two of pages, or 0 for no limit. The PRP list of one page limits it in any case.
    let limit = match controller[77] {
        0 => prp::LONGEST,
        mdts => 1usize.checked_shl(mdts.into()).map_or(prp::LONGEST, |pages| pages.min(prp::LONGEST)),
    };
    let mut size = [0; 8];
    size.copy_from_slice(&namespace[..8]);
    // FLBAS says which of the LBA formats, four bytes each from 128, is in use; LBADS is the third byte of it.
    let format = usize::from(namespace[26] & 0xf);
    let block_shift = namespace[128 + 4 * format + 2];
    NvmeInfo {
        serial: text(&controller[4..24]),
        model: text(&controller[24..64]),
        max_transfer: limit * PAGE,
        volatile_write_cache: controller[525] & 1 != 0,
        blocks: u64::from_le_bytes(size),
        // LBADS is at least 9; anything odd becomes the smallest size.
        block_size: 1 << if (9..=16).contains(&block_shift) { block_shift } else { 9 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identify_data_is_read_from_the_right_bytes() {
        let mut controller = [0; PAGE];
        controller[4..24].copy_from_slice(b"serial              ");
        controller[24..28].copy_from_slice(b"disk");
        controller[77] = 7;
        controller[525] = 7;
        let mut namespace = [0; PAGE];
        namespace[..8].copy_from_slice(&0x2_0000u64.to_le_bytes());
        namespace[26] = 0x12;
        namespace[128 + 8..][..4].copy_from_slice(&[0, 0, 12, 0]);
        let info = parse(&controller, &namespace);
        assert_eq!(
            info,
            NvmeInfo {
                serial: "serial".into(),
                model: "disk".into(),
                max_transfer: 128 * PAGE,
                volatile_write_cache: true,
                blocks: 0x2_0000,
                block_size: 4096,
            }
        );
        for unlimited in [0, 10, 63, 64, 255] {
            controller[77] = unlimited;
            let info = parse(&controller, &namespace);
            assert_eq!(info.max_transfer, 513 * PAGE);
        }
    }
}
