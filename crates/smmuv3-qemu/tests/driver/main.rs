//! The driver on a real QEMU: what the software model cannot vouch for, somebody else's SMMU and devices.
//!
//! Without a QEMU that is new enough these tests are ignored, and standard error says so; with
//! `SMMUV3_REQUIRE_QEMU=1` they fail instead. Those that need two SMMUs are ignored on any QEMU that has one; with
//! `SMMUV3_REQUIRE_TWO_SMMUS=1` they fail instead.

mod features;
mod granules;
#[path = "../harness/mod.rs"]
mod harness;
mod nested;
mod several;
mod support;

use std::process::ExitCode;

use harness::{Need, Tests, tests};
use smmuv3_qemu::Qemu;

fn main() -> ExitCode {
    let all = Tests {
        needs: None,
        list: tests![
            features::of_the_smmu_are_those_documented,
            nested::a_device_is_translated_twice_and_both_kinds_of_unmap_hold,
            nested::a_guest_s_own_configuration_commands_reach_its_device,
            nested::a_guest_s_device_and_one_on_the_parent_itself_at_the_same_time,
            granules::pages_and_blocks_of_stage_1,
            granules::pages_and_blocks_of_stage_2,
        ],
    };
    let two_smmus = Tests {
        needs: Some(Need {
            what: "two SMMUs (QEMU 10.2 or newer)",
            has: Qemu::has_several_smmus,
            variable: "SMMUV3_REQUIRE_TWO_SMMUS",
        }),
        list: tests![
            features::of_two_smmus_are_those_documented,
            several::the_devices_are_where_they_were_put,
            several::one_domain_over_both,
        ],
    };
    harness::run(&[all, two_smmus])
}
