//! The shape of a translation table: levels, indices, block sizes, concatenated start tables (Arm ARM D8.2).

use super::desc::Stage;
use super::features::{AddrSize, Granule};

/// The shape of one translation table.
///
/// # Invariants
/// - 39 to 48 input bits, which the levels `start ..= 3` resolve;
/// - the start level has `2^concat_log2` tables one after the other; more than one only at stage 2, at most 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    stage: Stage,
    granule: Granule,
    input_bits: u8,
    output_size: AddrSize,
    start: u8,
    concat_log2: u8,
}

/// Why there is no such table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadShape {
    /// The number of input bits is not one of 39 to 48.
    #[error("{0} input address bits; the driver serves 39 to 48")]
    InputBits(u8),
    /// A stage 2 table cannot have more input bits than output bits.
    #[error("stage 2 with {input} input bits on an SMMU with {output} output bits")]
    Stage2TooWide {
        /// Input bits asked for.
        input: u8,
        /// Output bits of the SMMU.
        output: u8,
    },
}

impl Shape {
    /// The table for `input_bits` of IOVA, 39 to 48, and addresses of at most 48 bits in `output_size`.
    pub fn new(stage: Stage, granule: Granule, input_bits: u8, output_size: AddrSize) -> Result<Self, BadShape> {
        if !(39..=48).contains(&input_bits) {
            return Err(BadShape::InputBits(input_bits));
        }
        let output_size = output_size.min(AddrSize::B48);
        if stage == Stage::S2 && input_bits > output_size.bits() {
            return Err(BadShape::Stage2TooWide { input: input_bits, output: output_size.bits() });
        }
        let per_level = granule.shift() as u8 - 3;
        let resolved = input_bits - granule.shift() as u8;
        let levels = resolved.div_ceil(per_level);
        let top_bits = resolved - (levels - 1) * per_level;
        // Stage 2 folds a top level of up to 16 entries into that many tables at the next level. The architecture allows it, and
        // where the output size is small demands it.
        let (start, concat_log2) = match stage {
            Stage::S2 if top_bits <= 4 => (4 - levels + 1, top_bits),
            _ => (4 - levels, 0),
        };
        Ok(Shape { stage, granule, input_bits, output_size, start, concat_log2 })
    }

    /// The stage that walks the table.
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// The granule: the size of pages and tables.
    pub const fn granule(&self) -> Granule {
        self.granule
    }

    /// Input address bits.
    pub const fn input_bits(&self) -> u8 {
        self.input_bits
    }

    /// Output address size.
    pub const fn output_size(&self) -> AddrSize {
        self.output_size
    }

    /// `T0SZ`
    pub const fn t0sz(&self) -> u8 {
        64 - self.input_bits
    }

    /// The level at which a walk starts, 0 to 2.
    pub const fn start_level(&self) -> u8 {
        self.start
    }

    /// `SL0` of a stage 2 table: the start level as the granule codes it.
    pub const fn sl0(&self) -> u8 {
        match self.granule {
            Granule::K4 => 2 - self.start,
            Granule::K16 | Granule::K64 => 3 - self.start,
        }
    }

    /// The bytes of the start table or tables. Their address is a multiple of it.
    pub const fn start_size(&self) -> usize {
        (self.granule.size() as usize) << self.concat_log2
    }

    /// Entries of a table.
    pub const fn entries(&self) -> usize {
        self.granule.size() as usize / 8
    }

    /// log2 of the bytes that one entry at `level` maps.
    pub const fn level_shift(&self, level: u8) -> u32 {
        self.granule.shift() + (3 - level as u32) * (self.granule.shift() - 3)
    }

    /// The index of `iova` in the table at `level`; at the start level over all concatenated tables.
    pub const fn index(&self, iova: u64, level: u8) -> usize {
        let index = (iova >> self.level_shift(level)) as usize;
        if level == self.start { index } else { index & (self.entries() - 1) }
    }

    /// Whether a leaf may stand at `level`: pages at 3, blocks at 2, and at 1 with 4 KiB pages.
    pub const fn leaf_at(&self, level: u8) -> bool {
        level == 3 || level == 2 || (level == 1 && matches!(self.granule, Granule::K4))
    }

    /// The first address above the input range.
    pub const fn input_end(&self) -> u64 {
        1 << self.input_bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(stage: Stage, granule: Granule, bits: u8) -> Shape {
        Shape::new(stage, granule, bits, AddrSize::B48).unwrap()
    }

    #[test]
    fn start_levels_are_those_of_the_architecture() {
        use Granule::*;
        use Stage::*;
        // (stage, granule, input bits) -> (start level, bytes of the start tables)
        for (stage, granule, bits, start, size) in [
            (S1, K4, 39, 1, 0x1000),
            (S1, K4, 40, 0, 0x1000),
            (S1, K4, 48, 0, 0x1000),
            (S1, K16, 39, 1, 0x4000),
            (S1, K16, 47, 1, 0x4000),
            (S1, K16, 48, 0, 0x4000),
            (S1, K64, 39, 2, 0x1_0000),
            (S1, K64, 42, 2, 0x1_0000),
            (S1, K64, 43, 1, 0x1_0000),
            (S1, K64, 48, 1, 0x1_0000),
            (S2, K4, 39, 1, 0x1000),
            (S2, K4, 40, 1, 0x2000),
            (S2, K4, 43, 1, 0x1_0000),
            (S2, K4, 44, 0, 0x1000),
            (S2, K16, 40, 2, 16 * 0x4000),
            (S2, K16, 41, 1, 0x4000),
            (S2, K16, 48, 1, 2 * 0x4000),
            (S2, K64, 42, 2, 0x1_0000),
            (S2, K64, 46, 2, 16 * 0x1_0000),
            (S2, K64, 47, 1, 0x1_0000),
        ] {
            let shape = shape(stage, granule, bits);
            assert_eq!((shape.start_level(), shape.start_size()), (start, size), "{shape:?}");
        }
    }

    #[test]
    fn indices_of_all_levels_put_together_give_the_page_back() {
        for granule in [Granule::K4, Granule::K16, Granule::K64] {
            for bits in 39..=48 {
                for stage in [Stage::S1, Stage::S2] {
                    let shape = shape(stage, granule, bits);
                    let iova = 0x0000_a5c3_9671_e0d2 & (shape.input_end() - 1);
                    let rebuilt: u64 = (shape.start_level()..=3)
                        .map(|level| (shape.index(iova, level) as u64) << shape.level_shift(level))
                        .sum();
                    assert_eq!(rebuilt, iova & !(granule.size() - 1), "{shape:?}");
                    let top = shape.index(shape.input_end() - 1, shape.start_level());
                    assert!(top < shape.start_size() / 8, "{shape:?}");
                }
            }
        }
    }

    #[test]
    fn tables_that_cannot_be_are_refused_by_name() {
        let new = |stage, bits, oas| Shape::new(stage, Granule::K4, bits, AddrSize::from_code(oas));
        assert_eq!(new(Stage::S1, 38, 5), Err(BadShape::InputBits(38)));
        assert_eq!(new(Stage::S1, 49, 5), Err(BadShape::InputBits(49)));
        assert_eq!(new(Stage::S2, 44, 3), Err(BadShape::Stage2TooWide { input: 44, output: 42 }));
        assert!(new(Stage::S1, 48, 0).is_ok());
    }
}
