//! What becomes visible to the SMMU in which order, and what the tables look like to it.

extern crate std;

use super::*;
use crate::arch::regs::{Aidr, Idr0, Idr1, Idr3, Idr5, StrtabBaseCfg};
use crate::arch::{AddrSize, CdFormat, Granule};
use crate::arch::{Eats, Features, IdRegs, L1Cd, L1Std, RawCd, RawSte, Stages, Ste, SteStage2};
use crate::platform::PhysAddr;
use crate::testing::TestPlatform;
use std::vec::Vec;

fn features(sid_bits: u8, two_level: bool) -> Features {
    let mut features = Features::from(IdRegs {
        idr0: Idr0::new_with_raw_value(0x0d4c_101b),
        idr1: Idr1::new_with_raw_value(0x0273_0510),
        idr3: Idr3::new_with_raw_value(0x1414),
        idr5: Idr5::new_with_raw_value(0x75),
        aidr: Aidr::new_with_raw_value(1),
    });
    (features.sid_bits, features.st_two_level, features.cd_two_level) = (sid_bits, two_level, two_level);
    features
}

#[test]
fn a_level_1_stream_table_pointer_is_visible_only_after_its_stes_are_invalid() {
    let platform = TestPlatform::new(64);
    let mut table = StreamTable::new(&platform, &features(16, true)).unwrap();
    platform.record_epochs();
    assert_eq!(table.claim(0x1234), Ok(true));
    assert_eq!(table.claim(0x1235), Ok(true), "the SMMU may still have cached its absence");
    table.known(0x1234);
    assert_eq!(table.claim(0x1236), Ok(false));
    let pointer = (table.base().0 & 0x00ff_ffff_ffff_ffc0) + 8 * 0x12;
    let (target, log2) = L1Std::new_with_raw_value(platform.read(pointer)).target(8).unwrap();
    assert_eq!(log2, 8);
    platform.assert_written_before_pointed_to(pointer, target.0, 256 * 8);
}

#[test]
fn a_level_1_cd_table_pointer_is_visible_only_after_its_cds_are_invalid() {
    let platform = TestPlatform::new(64);
    let mut table = CdTable::new(&platform, &features(16, true), 10).unwrap();
    platform.record_epochs();
    assert_eq!(table.reserve(0x45), Some(()));
    let (l1, format, bits) = table.pointer();
    assert_eq!((format, bits), (CdFormat::TwoLevel4K, 10));
    let target = L1Cd::new_with_raw_value(platform.read(l1.0 + 8)).target().unwrap();
    platform.assert_written_before_pointed_to(l1.0 + 8, target.0, 64 * 8);
    assert_eq!(table.reserve(0x400), None, "beyond the table");
    assert!(table.cd(0x45).is_some() && table.cd(0x85).is_none());
}

#[test]
fn each_step_of_an_entry_is_in_memory_behind_a_barrier_before_the_smmu_is_told() {
    let platform = TestPlatform::new(64);
    let mut table = StreamTable::new(&platform, &features(10, false)).unwrap();
    table.claim(3).unwrap();
    let at = TestPlatform::index((table.base().0 & 0x00ff_ffff_ffff_ffc0) + 3 * 64);
    let stage2 = SteStage2 {
        t0sz: 24,
        sl0: 1,
        granule: Granule::K4,
        output_size: AddrSize::B48,
        ttb: PhysAddr(0x8000),
        record: true,
        stall: false,
        protected_walk: true,
    };
    let translate = |vmid, ttb| {
        let stage2 = SteStage2 { ttb: PhysAddr(ttb), ..stage2 };
        Ste::Translate { vmid, eats: Eats::Off, stages: Stages::S2(stage2) }.encode()
    };
    // The last step is a change that goes through V = 0.
    let targets =
        [Ste::Abort.encode(), translate(1, 0x8000), Ste::Bypass.encode(), translate(1, 0x8000), translate(2, 0x9000)];
    let words = table.ste(3).unwrap();
    for target in targets {
        let current = RawSte(core::array::from_fn(|word| words[word].load(Relaxed)));
        let expected: Vec<Step> = plan(current, target).into_iter().collect();
        platform.record_epochs();
        let mut step = 0;
        let steps = write(&platform, words, target, || {
            let epochs = platform.epochs();
            let (now, barriers) = epochs.split_last().unwrap();
            assert_eq!(now[at..at + 8], expected[step].entry, "CFGI before the entry was written");
            assert_eq!(barriers.last().unwrap()[at..at + 8], expected[step].entry, "no barrier behind the entry");
            // And one in front of it, after all that the new words point to.
            let previous = if step == 0 { current.0 } else { expected[step - 1].entry };
            assert_eq!(barriers[barriers.len() - 2][at..at + 8], previous, "no barrier in front of the entry");
            step += 1;
            Ok::<(), ()>(())
        });
        assert_eq!(steps, Ok(expected.len()));
        assert_eq!(step, expected.len());
        assert_eq!(RawSte(core::array::from_fn(|word| words[word].load(Relaxed))), target);
    }
}

#[test]
fn an_entry_stays_where_it_is_when_the_smmu_does_not_answer() {
    let platform = TestPlatform::new(64);
    let words: [AtomicU64; 8] = Default::default();
    let target = RawCd([1 << 31, 2, 3, 4, 0, 0, 0, 0]);
    let mut calls = 0;
    let result = write(&platform, &words, target, || {
        calls += 1;
        Err("dead")
    });
    assert_eq!((result, calls), (Err("dead"), 1));
    assert_eq!(words[0].load(Relaxed), 0, "not valid before the rest was seen");
}

#[test]
fn stream_tables_have_the_shape_that_the_smmu_is_told() {
    for (sid_bits, two_level, expected) in [
        (16, true, (16, 8, 1)),
        (8, true, (8, 8, 0)),
        (10, false, (10, 8, 0)),
        (32, true, (25, 8, 1)),
        (20, false, (16, 8, 0)),
    ] {
        let platform = TestPlatform::new(2048);
        let mut table = StreamTable::new(&platform, &features(sid_bits, two_level)).unwrap();
        let config = StrtabBaseCfg::new_with_raw_value(table.base().1);
        let shape = (config.log2size().value(), config.split().value(), config.fmt().value());
        assert_eq!(shape, expected, "{sid_bits} bits");
        let last = (1u32 << expected.0) - 1;
        table.claim(last).unwrap();
        assert!(table.ste(last).is_some());
        let beyond = StreamTableError::OutOfRange { sid: last + 1, bits: expected.0 };
        assert_eq!(table.claim(last + 1), Err(beyond));
        assert_eq!(table.claim(last), Err(StreamTableError::InUse(last)));
        table.release(last);
        table.known(last);
        assert_eq!(table.claim(last), Ok(false));
    }
}

#[test]
fn what_was_published_before_comes_before_the_words_of_an_entry() {
    // Barrier (B).
    let platform = TestPlatform::new(64);
    let mut table = StreamTable::new(&platform, &features(10, false)).unwrap();
    table.claim(3).unwrap();
    let published = crate::platform::DmaBox::new(&platform, 64, 64).unwrap();
    let at = TestPlatform::index((table.base().0 & 0x00ff_ffff_ffff_ffc0) + 3 * 64);
    let array = TestPlatform::index(published.addr().0);
    platform.record_epochs();
    published.words()[0].store(7, Relaxed);
    write(&platform, table.ste(3).unwrap(), Ste::Abort.encode(), || Ok::<(), ()>(())).unwrap();
    let epochs = platform.epochs();
    let first = epochs.iter().position(|epoch| epoch[at] != 0).unwrap();
    assert_eq!(epochs[first - 1][array], 7, "the entry may be seen before what was published");
}
