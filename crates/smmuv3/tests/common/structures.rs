//! Any bytes, taken for each structure that the architecture defines: reading never panics, and what was read survives being written and read
//! again. For the fuzzer and for the tests.

use arch::regs::{Aidr, CmdqCons, CmdqError, Cr0, Gbpa, Gerror, Idr0, Idr1, Idr3, Idr5, StrtabBaseCfg};
use arch::{AddrSize, Desc, DescKind, Features, Granule, IdRegs, L1Cd, L1Std, RawCd, RawCommand, RawEvent, RawSte};
use arch::{Shape, Stage};
use smmuv3::arch;

/// An input is a structure of 64 bytes, and behind it the ID registers of the SMMU that reads it.
pub const UNIT: usize = 64;

const GRANULES: [Granule; 3] = [Granule::K4, Granule::K16, Granule::K64];
const STAGES: [Stage; 2] = [Stage::S1, Stage::S2];

/// Panics if reading does, or if something is read differently the second time.
pub fn run(input: &[u8]) {
    let mut bytes = input.iter().copied().chain(std::iter::repeat(0));
    let mut word = || u64::from_le_bytes(std::array::from_fn(|_| bytes.next().unwrap_or(0)));
    let words: [u64; 8] = std::array::from_fn(|_| word());
    let ids: [u32; 6] = std::array::from_fn(|n| (word() >> (n % 2)) as u32);
    let features = features(ids);
    stream_table_entry(words, &features);
    context_descriptor(words, &features);
    command([words[0], words[1]]);
    event([words[0], words[1], words[2], words[3]]);
    words.into_iter().for_each(descriptor);
    level_1(words[0]);
    registers(words[0] as u32);
    shape(words[0].to_le_bytes());
}

fn features([idr0, idr1, idr3, idr5, aidr, _]: [u32; 6]) -> Features {
    let features = Features::from(IdRegs {
        idr0: Idr0::new_with_raw_value(idr0),
        idr1: Idr1::new_with_raw_value(idr1),
        idr3: Idr3::new_with_raw_value(idr3),
        idr5: Idr5::new_with_raw_value(idr5),
        aidr: Aidr::new_with_raw_value(aidr),
    });
    assert!(features.sid_bits <= 32 && features.ssid_bits <= arch::SSID_MAX_BITS, "{features:?}");
    assert!(features.cmdq_log2 <= 19 && features.eventq_log2 <= 19, "{features:?}");
    assert!(features.used_oas().bits() <= 48, "{features:?}");
    let first = GRANULES.into_iter().find(|granule| features.granule(*granule));
    assert_eq!(features.smallest_granule(), first);
    features
}

fn stream_table_entry(words: [u64; 8], features: &Features) {
    let raw = RawSte(words);
    let _ = format!("{raw:?}");
    let read = raw.decode(features);
    // What no SMMU looks at changes nothing.
    let used = raw.used();
    let bare = RawSte(std::array::from_fn(|n| words[n] & used[n]));
    assert_eq!((bare.decode(features), bare.used()), (read, used), "{raw:?}");
    match read {
        Ok(ste) => assert_eq!(ste.encode().decode(features), Ok(ste), "{raw:?}"),
        Err(bad) => assert!(!bad.to_string().is_empty()),
    }
}

fn context_descriptor(words: [u64; 8], features: &Features) {
    let raw = RawCd(words);
    let _ = format!("{raw:?}");
    let read = raw.decode(features);
    let used = raw.used();
    let bare = RawCd(std::array::from_fn(|n| words[n] & used[n]));
    assert_eq!((bare.decode(features), bare.used()), (read, used), "{raw:?}");
    match read {
        Ok(cd) => assert_eq!(cd.encode().decode(features), Ok(cd), "{raw:?}"),
        Err(bad) => assert!(!bad.to_string().is_empty()),
    }
}

fn command(words: [u64; 2]) {
    let raw = RawCommand(words);
    let _ = format!("{raw:?}");
    match raw.decode() {
        Ok(command) => {
            assert_eq!(command.encode().decode(), Ok(command), "{raw:?}");
            assert!(!command.mnemonic().is_empty());
        }
        Err(illegal) => assert!(!illegal.to_string().is_empty()),
    }
}

fn event(words: [u64; 4]) {
    let raw = RawEvent(words);
    let event = raw.decode();
    assert_eq!(event.encode().decode(), event, "{raw:?}");
    assert_eq!(event.code(), raw.code());
    let text = event.to_string();
    assert!(text.starts_with(event.name()) && !text.contains('\n'), "{text}");
    assert_eq!(event.is_stalled(), event.stall_tag().is_some());
    if let (Some(fault), input) = (event.translation_fault(), event.input_address()) {
        assert_eq!(input, Some(fault.input));
    }
}

fn descriptor(word: u64) {
    let desc = Desc(word);
    let _ = (format!("{desc:?}"), desc.access_flag(), desc.not_global());
    for granule in GRANULES {
        for level in 0..=3 {
            match desc.kind(level, granule) {
                DescKind::Invalid => {}
                DescKind::Table(next) => assert_eq!(Desc::table(next).kind(level, granule), DescKind::Table(next)),
                DescKind::Leaf(addr) => {
                    for stage in STAGES {
                        let prot = desc.prot(stage);
                        let again = Desc::leaf(addr, level, stage, prot);
                        assert_eq!(again.kind(level, granule), DescKind::Leaf(addr), "{desc:?} at level {level}");
                        assert_eq!(again.prot(stage), prot, "{desc:?} at {stage}");
                    }
                }
            }
        }
    }
}

fn level_1(word: u64) {
    let entry = L1Std::new_with_raw_value(word);
    for split in [6, 8, 10] {
        if let Some((addr, log2)) = entry.target(split) {
            assert_eq!(L1Std::pointing_to(addr, log2).target(split), Some((addr, log2)), "{entry:?}");
        }
    }
    let entry = L1Cd::new_with_raw_value(word);
    if let Some(addr) = entry.target() {
        assert_eq!(L1Cd::pointing_to(addr).target(), Some(addr));
    }
}

fn registers(word: u32) {
    let cons = CmdqCons::new_with_raw_value(word);
    assert!(!CmdqError::from(cons.err()).to_string().is_empty());
    let _ = format!("{cons:?} {:?} {:?}", Cr0::new_with_raw_value(word), Gbpa::new_with_raw_value(word));
    let _ = format!("{:?} {:?}", StrtabBaseCfg::new_with_raw_value(word), Gerror::from_bits_retain(word));
}

fn shape([stage, granule, bits, output, iova @ ..]: [u8; 8]) {
    let granule = GRANULES[usize::from(granule) % 3];
    let output = AddrSize::from_code(output);
    let Ok(shape) = Shape::new(STAGES[usize::from(stage) % 2], granule, bits, output) else { return };
    let iova = u64::from(u32::from_le_bytes(iova)) << 16 & (shape.input_end() - 1);
    for level in shape.start_level()..=3 {
        let entries = if level == shape.start_level() { shape.start_size() / 8 } else { shape.entries() };
        assert!(shape.index(iova, level) < entries, "{shape:?}");
    }
}

/// Inputs to begin with: each structure as the driver writes it, for an SMMU that has everything.
pub fn seeds() -> Vec<Vec<u8>> {
    use arch::TranslationFault;
    use arch::{
        Access, Cd, Class, Command, Eats, Event, Fetch, Prot, Rights, Stages, Ste, SteStage1, SteStage2, Stream,
    };
    use arch::{CdFormat, DefaultSubstream, FaultStage, Ipa, StreamWorld, SyncSignal, TlbiAddr, TlbiRange};
    use smmuv3::platform::{Iova, PhysAddr};

    let s1 = SteStage1 {
        context_ptr: PhysAddr(0x8000_0000),
        cd_max: 8,
        format: CdFormat::TwoLevel64K,
        default_substream: DefaultSubstream::Substream0,
        world: StreamWorld::El2,
        stall_disabled: false,
    };
    let s2 = SteStage2 {
        t0sz: 25,
        sl0: 1,
        granule: Granule::K4,
        output_size: AddrSize::from_code(4),
        ttb: PhysAddr(0x8010_0000),
        record: true,
        stall: false,
        protected_walk: true,
    };
    let translate = |eats, stages| Ste::Translate { vmid: 7, eats, stages };
    let stes = [
        Ste::Invalid,
        Ste::Abort,
        Ste::Bypass,
        translate(Eats::Full, Stages::S1(s1)),
        translate(Eats::Off, Stages::S2(s2)),
        translate(Eats::Full, Stages::Nested(s1, s2)),
    ];
    let cd = Cd {
        t0sz: 25,
        granule: Granule::K16,
        output_size: AddrSize::B48,
        ttb0: Some(PhysAddr(0x8020_0000)),
        asid: 9,
        private_asid: true,
        mair: arch::MAIR,
        record: true,
        stall: false,
        abort: true,
    };
    let range = Some(TlbiRange { granule: Granule::K64, num: 3, scale: 2, ttl: 0 });
    let addr = TlbiAddr { addr: 0x1000, leaf: true, range };
    let commands = [
        Command::CfgiSteRange { sid: 0, range: 31 },
        Command::CfgiCd { sid: 3, ssid: 1, leaf: true },
        Command::TlbiNhVa { vmid: 7, asid: 9, addr },
        Command::TlbiS2Ipa { vmid: 7, addr },
        Command::AtcInv { sid: 3, ssid: Some(1), global: false, addr: 0x1000, size: 3 },
        Command::PriResp { sid: 3, ssid: None, prg_index: 5, resp: 2 },
        Command::Resume { sid: 3, stag: 5, retry: true, abort: false },
        Command::Sync(SyncSignal::Msi { addr: 0x8000_0000, data: 1 }),
    ];
    let stream = Stream { sid: 0x18, ssid: Some(1) };
    let access = Access { rnw: true, ind: false, pnu: false };
    let (input, stage) = (Iova(0x1000), FaultStage::S2 { ipa: Ipa(0x4000_0000), nsipa: false });
    let fault = TranslationFault { stall: Some(3), access, class: Class::In, stage, input };
    let fetch = Fetch { addr: PhysAddr(0x8000_0040), gpcf: true, reason: 1 };
    let rights = Rights { read: true, write: false, execute: true };
    let events = [
        Event::FUut { stream, access, input, reason: 1 },
        Event::FSteFetch(stream, fetch),
        Event::FBadAtsTreq { stream, input, rights, privileged: true, span: 3 },
        Event::CBadSubstreamid { sid: 0x18, ssid: 1 },
        Event::FWalkEabt { stream, access, class: Class::Tt, s2: true, input, fetch },
        Event::FTranslation(stream, fault),
        Event::FPermission { stream, fault, ttrnw: true, other: 0 },
        Event::FTlbConflict { stream, access, stage, input, reason: 1 },
        Event::EPageRequest { stream, input, span: 2, privileged: rights, unprivileged: rights },
    ];
    let leaf = |level, stage| Desc::leaf(PhysAddr(0x4000_0000), level, stage, Prot::READ | Prot::WRITE).0;
    let descriptors = [leaf(3, Stage::S1), leaf(2, Stage::S2), leaf(1, Stage::S1), Desc::table(PhysAddr(0x1000)).0];
    let structures = stes.map(|ste| ste.encode().0.to_vec()).into_iter();
    let structures = structures.chain([cd.encode().0.to_vec(), descriptors.to_vec()]);
    let structures = structures.chain(commands.map(|command| command.encode().0.to_vec()));
    let structures = structures.chain(events.map(|event| event.encode().0.to_vec()));
    // As `run` takes them: IDR0, IDR1, IDR3, IDR5, AIDR.
    let ids = [0x0d5c_761f, 0x0273_0510 << 1, 0x0c04, 0x75 << 1, 2, 0];
    let seed = |mut words: Vec<u64>| {
        words.resize(8, 0);
        words.extend(ids);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    };
    structures.map(seed).collect()
}
