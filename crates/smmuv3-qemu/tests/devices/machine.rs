//! The machine itself: what it has, how it ends, what it leaves.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use smmuv3::platform::{Iova, Mmio, PhysAddr};
use smmuv3_qemu::{Edu, Machine, MachineConfig, Qemu, QemuError};

use crate::support::{TestResult, pages, read, start};

// Registers of the SMMU (IHI 0070 §6.3).
const IDR0: usize = 0x00;
const CR0: usize = 0x20;
const STRTAB_BASE: usize = 0x80;

pub(crate) fn the_devices_are_where_they_were_put(qemu: &Qemu) -> TestResult {
    let config = MachineConfig { edus: 15, ..MachineConfig::default() };
    let machine = Machine::start(qemu, config)?;
    let found: Vec<_> = machine.functions().iter().map(|f| (f.stream_id(), f.vendor, f.device, f.class)).collect();
    let host_bridge = (0, 0x1b36, 0x0008, 0x06_0000);
    let edus = (1..=15).map(|slot| (slot << 3, 0x1234, 0x11e8, 0x00_ff00));
    let nvme = (16 << 3, 0x1b36, 0x0010, 0x01_0802);
    let expected: Vec<_> = [host_bridge].into_iter().chain(edus).chain([nvme]).collect();
    assert_eq!(found, expected);

    let mut bars: Vec<_> = machine.functions().iter().flat_map(|f| f.bars).flatten().collect();
    assert!(bars.len() >= 16);
    bars.sort_by_key(|bar| bar.addr);
    assert!(bars[0].addr >= 0x1000_0000);
    for pair in bars.windows(2) {
        assert!(pair[0].addr + pair[0].size <= pair[1].addr, "{pair:x?} overlap");
    }
    for index in 0..15 {
        assert_eq!(machine.edu(index)?.stream_id(), (u32::from(index) + 1) << 3);
    }
    for absent in [15, 254, 255] {
        let error = machine.edu(absent).unwrap_err();
        assert_eq!(error.to_string(), format!("the machine has no edu number {absent}"));
    }
    // One device is not taken for another.
    let error = Edu::new(machine.platform(), machine.nvme()?).unwrap_err();
    assert!(error.to_string().starts_with("00:10.0 is no edu: "), "{error}");
    Ok(())
}

pub(crate) fn two_machines_do_not_disturb_each_other(qemu: &Qemu) -> TestResult {
    let (one, two) = (start(qemu)?, start(qemu)?);
    let addr = pages(one.platform(), 1)?[0];
    one.platform().write_bytes(addr, &[1; 16])?;
    two.platform().write_bytes(addr, &[2; 16])?;
    drop(two);
    assert_eq!(read(one.platform(), addr, 16)?, [1; 16]);
    assert_eq!(one.smmu().try_read32(CR0)?, 0);
    Ok(())
}

pub(crate) fn a_killed_qemu_reads_as_all_ones(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let mut edu = machine.edu(0)?;
    let script = format!("kill -9 {}", machine.process_id());
    Command::new("sh").args(["-c", &script]).status()?;
    // The kill may take a moment to be felt.
    let deadline = Instant::now() + Duration::from_secs(10);
    while machine.error().is_none() && Instant::now() < deadline {
        machine.smmu().read32(IDR0);
    }
    assert_eq!(machine.smmu().read32(IDR0), u32::MAX);
    assert_eq!(machine.smmu().read64(STRTAB_BASE), u64::MAX);
    machine.smmu().write32(CR0, 1);
    assert!(edu.copy_in(Iova(0x4100_0000), 64, 0).is_err());
    assert_eq!(machine.error().unwrap().to_string(), "QEMU ended (signal: 9 (SIGKILL)) and said: nothing");
    // Handles outlive the machine, and so does what was in its memory.
    let platform = machine.platform().clone();
    platform.write_bytes(PhysAddr(0x4100_0000), b"kept")?;
    drop(machine);
    assert_eq!(read(&platform, PhysAddr(0x4100_0000), 4)?, b"kept");
    Ok(())
}

pub(crate) fn a_qemu_that_refuses_its_arguments_says_why(qemu: &Qemu) -> TestResult {
    let config =
        MachineConfig { more_arguments: vec!["-device".into(), "no-such-device".into()], ..MachineConfig::default() };
    let error = Machine::start(qemu, config).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, QemuError::Exited { .. }), "{text}");
    assert!(text.contains("'no-such-device' is not a valid device model name"), "{text}");
    assert!(!text.contains('\n'), "{text}");
    Ok(())
}

pub(crate) fn nothing_is_left_behind(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let process = format!("/proc/{}", machine.process_id());
    let Ok(arguments) = fs::read_to_string(format!("{process}/cmdline")) else {
        return Err("cannot see QEMU's arguments (this test needs Linux)".into());
    };
    let paths: Vec<&str> =
        arguments.split(['\0', ',', '=', ':']).filter(|word| word.contains("smmuv3-qemu-")).collect();
    assert_eq!(paths.len(), 3, "RAM, disk and socket in {paths:?}");
    for path in paths {
        assert!(!Path::new(path).exists(), "{path}");
    }
    drop(machine);
    assert!(!Path::new(&process).exists());
    Ok(())
}
