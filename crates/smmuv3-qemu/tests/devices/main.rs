//! The real QEMU and its devices, without the driver: most tests leave the SMMU as reset does, disabled, so that an
//! IOVA is a physical address. Those in `smmu` enable it with tables written by hand.
//!
//! Without a QEMU that is new enough these tests are ignored, and standard error says so; with
//! `SMMUV3_REQUIRE_QEMU=1` they fail instead.

mod edu;
#[path = "../harness/mod.rs"]
mod harness;
mod machine;
mod nvme;
mod smmu;
mod support;

use std::process::ExitCode;

use harness::{Tests, tests};

const TESTS: Tests = Tests {
    needs: None,
    list: tests![
        machine::the_devices_are_where_they_were_put,
        machine::two_machines_do_not_disturb_each_other,
        machine::a_killed_qemu_reads_as_all_ones,
        machine::a_qemu_that_refuses_its_arguments_says_why,
        machine::nothing_is_left_behind,
        edu::moves_data_both_ways,
        edu::reads_its_memory_when_the_transfer_ends,
        edu::reaches_nothing_while_the_smmu_aborts,
        nvme::keeps_a_mebibyte,
        nvme::takes_one_page_two_pages_and_a_list,
        nvme::survives_more_commands_than_its_queue_is_long,
        nvme::tells_of_bad_requests,
        nvme::tells_when_the_smmu_aborts,
        smmu::has_both_stages,
        smmu::translates_for_edu,
        smmu::translates_for_nvme,
        smmu::keeps_edu_out_and_tells,
        smmu::keeps_nvme_out_and_tells,
        smmu::that_refuses_nvme_its_own_memory_is_noticed,
    ],
};

fn main() -> ExitCode {
    harness::run(&[TESTS])
}
