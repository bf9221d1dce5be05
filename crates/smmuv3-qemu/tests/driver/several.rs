//! Two SMMUs in one machine.

use smmuv3::arch::{Command, Stage};
use smmuv3::platform::Iova;
use smmuv3_qemu::{Machine, MachineConfig, Qemu};

use crate::support::{LEN, PAGE, RW, Rig, TestResult};

const SOURCE_AT: Iova = Iova(0x1000_0000);
const TARGET_AT: [Iova; 2] = [Iova(0x2000_0000), Iova(0x3000_0000)];

pub(crate) fn the_devices_are_where_they_were_put(qemu: &Qemu) -> TestResult {
    let machine = Machine::start(qemu, MachineConfig { edus: 15, smmus: 2, ..MachineConfig::default() })?;
    assert_eq!(machine.smmus(), 2);
    assert_eq!(machine.smmu_at(2).unwrap_err().to_string(), "the machine has no SMMU number 2");
    for index in 0..15 {
        let edu = machine.edu(index)?;
        let expected = match index % 2 {
            0 => (0, (u32::from(index) + 1) << 3),
            _ => (1, (0x81 + u32::from(index) / 2) << 8),
        };
        assert_eq!((edu.smmu(), edu.stream_id()), expected, "edu {index}");
    }
    assert_eq!(machine.nvme()?.smmu, 0);
    let mut bars: Vec<_> = machine.functions().iter().flat_map(|f| f.bars).flatten().collect();
    bars.sort_by_key(|bar| bar.addr);
    for pair in bars.windows(2) {
        assert!(pair[0].addr + pair[0].size <= pair[1].addr, "{pair:x?} overlap");
    }
    Ok(())
}

pub(crate) fn one_domain_over_both(qemu: &Qemu) -> TestResult {
    let rig = Rig::new(qemu, 2)?;
    let mut dmas = [rig.dma(0)?, rig.dma(1)?];
    for (index, dma) in dmas.iter().enumerate() {
        assert_eq!(dma.device.smmu(), rig.smmus[index].id());
    }
    let source = rig.page(PAGE, 0)?;
    let targets = [rig.page(PAGE, 0)?, rig.page(PAGE, 0)?];
    for stage in [Stage::S1, Stage::S2] {
        let domain = rig.domain(stage)?;
        for dma in &dmas {
            dma.device.attach(&domain)?;
        }
        domain.map(SOURCE_AT, source, PAGE, RW)?;
        for (at, target) in TARGET_AT.into_iter().zip(targets) {
            domain.map(at, target, PAGE, RW)?;
            rig.fill(target, 2)?;
        }

        // Each brings the source to a target of its own, and then has both pages in its SMMU's TLB.
        rig.fill(source, 1)?;
        dmas.iter_mut().try_for_each(|dma| dma.edu.start_copy_in(SOURCE_AT, LEN, 0))?;
        dmas.iter_mut().try_for_each(|dma| dma.edu.wait())?;
        for (dma, at) in dmas.iter_mut().zip(TARGET_AT) {
            dma.edu.start_copy_out(at, LEN, 0)?;
        }
        dmas.iter_mut().try_for_each(|dma| dma.edu.wait())?;
        targets.iter().for_each(|target| rig.expect(*target, 1));
        rig.expect_quiet();

        // The source is taken away, and both SMMUs are told.
        let before = [rig.next_command(0)?, rig.next_command(1)?];
        assert_eq!(domain.unmap(SOURCE_AT, PAGE)?.wait_rounds, 1);
        for (smmu, before) in [0, 1].into_iter().zip(before) {
            let commands = rig.commands(smmu, before)?;
            let told = match (stage, commands.as_slice()) {
                (Stage::S1, [Command::TlbiNhVa { addr, .. }, Command::Sync(_)]) => addr.addr,
                (Stage::S2, [Command::TlbiS2Ipa { addr, .. }, .., Command::Sync(_)]) => addr.addr,
                _ => panic!("{stage}, SMMU {smmu}: {commands:x?}"),
            };
            assert_eq!(told, SOURCE_AT.0, "{stage}, SMMU {smmu}");
        }
        rig.fill(source, 3)?;
        dmas.iter_mut().try_for_each(|dma| dma.edu.start_copy_out(SOURCE_AT, LEN, 0))?;
        dmas.iter_mut().try_for_each(|dma| dma.edu.wait())?;
        rig.expect(source, 3);
        dmas.iter().for_each(|dma| rig.expect_refused(dma, SOURCE_AT, stage, SOURCE_AT.0));

        // The first leaves: only the second SMMU is told, and its device goes on.
        dmas[0].device.detach()?;
        let before = [rig.next_command(0)?, rig.next_command(1)?];
        domain.unmap(TARGET_AT[0], PAGE)?;
        assert_eq!(rig.commands(0, before[0])?, []);
        assert_ne!(rig.commands(1, before[1])?, []);
        rig.fill(targets[1], 4)?;
        dmas[1].edu.copy_out(TARGET_AT[1], LEN, 0)?;
        rig.expect(targets[1], 1);
        rig.expect_quiet();
        dmas[1].device.detach()?;
    }
    Ok(())
}
