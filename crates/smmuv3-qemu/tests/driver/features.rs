//! What QEMU's SMMUs have, as the crate's documentation says, and as those rely on it who decide what can run on QEMU.

use smmuv3::arch::Granule;
use smmuv3_qemu::Qemu;

use crate::support::{Rig, TestResult};

pub(crate) fn of_the_smmu_are_those_documented(qemu: &Qemu) -> TestResult {
    are_those_documented(qemu, 1)
}

pub(crate) fn of_two_smmus_are_those_documented(qemu: &Qemu) -> TestResult {
    are_those_documented(qemu, 2)
}

fn are_those_documented(qemu: &Qemu, smmus: u8) -> TestResult {
    let rig = Rig::new(qemu, smmus)?;
    for smmu in &rig.smmus {
        let features = smmu.features();
        assert!(features.stage1 && features.stage2 && features.range_inv && features.st_two_level, "{features:?}");
        assert!(!features.ats && !features.pri && !features.cd_two_level, "{features:?}");
        assert_eq!((features.sid_bits, features.ssid_bits), (16, 0));
        assert_eq!((features.asid_bits, features.vmid_bits, features.oas.bits()), (16, 16, 44));
        assert!([Granule::K4, Granule::K16, Granule::K64].into_iter().all(|granule| features.granule(granule)));
    }
    Ok(())
}
