//! edu with the SMMU disabled.

use std::time::{Duration, Instant};

use smmuv3::platform::Iova;
use smmuv3_qemu::Qemu;

use crate::support::{PAGE, TestResult, bypass, pages, pattern, read, set_abort, start};

pub(crate) fn moves_data_both_ways(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let pages = pages(platform, 2)?;
    for index in 0..2 {
        let mut edu = machine.edu(index)?;
        let data = pattern(index.into(), PAGE);
        platform.write_bytes(pages[0], &data)?;
        platform.write_bytes(pages[1], &[0; PAGE])?;
        edu.copy_in(bypass(pages[0]), PAGE, 0)?;
        edu.copy_out(bypass(pages[1]), PAGE, 0)?;
        assert!(read(platform, pages[1], PAGE)? == data, "edu {index}");
        // A part of it, from the middle of the buffer to the middle of a page.
        platform.write_bytes(pages[1], &[0; PAGE])?;
        edu.copy_out(Iova(pages[1].0 + 0x123), 0x77, 0xabc)?;
        let mut expected = vec![0; PAGE];
        expected[0x123..][..0x77].copy_from_slice(&data[0xabc..][..0x77]);
        assert!(read(platform, pages[1], PAGE)? == expected, "edu {index}");
    }
    Ok(())
}

pub(crate) fn reads_its_memory_when_the_transfer_ends(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let mut edu = machine.edu(0)?;
    let pages = pages(platform, 2)?;
    let (early, late) = (pattern(1, PAGE), pattern(2, PAGE));
    platform.write_bytes(pages[0], &early)?;

    let before = Instant::now();
    edu.start_copy_in(bypass(pages[0]), PAGE, 0)?;
    let second = edu.start_copy_in(bypass(pages[1]), PAGE, 0);
    platform.write_bytes(pages[0], &late)?;
    // Where this host was too slow, nothing can be said.
    let was_in_time = before.elapsed() < Duration::from_millis(90);
    edu.wait()?;
    assert!(before.elapsed() >= Duration::from_millis(90));
    if was_in_time {
        assert_eq!(second.unwrap_err().to_string(), "edu is still busy with another transfer");
        edu.copy_out(bypass(pages[1]), PAGE, 0)?;
        assert!(read(platform, pages[1], PAGE)? == late);
    }
    Ok(())
}

pub(crate) fn reaches_nothing_while_the_smmu_aborts(qemu: &Qemu) -> TestResult {
    let machine = start(qemu)?;
    let platform = machine.platform();
    let mut edu = machine.edu(0)?;
    let pages = pages(platform, 2)?;
    let (data, other) = (pattern(1, PAGE), pattern(2, PAGE));
    platform.write_bytes(pages[0], &data)?;
    edu.copy_in(bypass(pages[0]), PAGE, 0)?;
    platform.write_bytes(pages[1], &other)?;

    set_abort(&machine, true)?;
    edu.copy_out(bypass(pages[1]), PAGE, 0)?;
    assert!(read(platform, pages[1], PAGE)? == other);

    set_abort(&machine, false)?;
    edu.copy_out(bypass(pages[1]), PAGE, 0)?;
    assert!(read(platform, pages[1], PAGE)? == data);
    Ok(())
}
