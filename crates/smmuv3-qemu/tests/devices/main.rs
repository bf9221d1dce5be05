//! The real QEMU and its devices, without the driver: most tests leave the SMMU as reset does, disabled, so that an
//! IOVA is a physical address. Those in `smmu` enable it with tables written by hand.
//!
//! Without a QEMU that is new enough these tests are ignored, and standard error says so; with
//! `SMMUV3_REQUIRE_QEMU=1` they fail instead.

mod edu;
mod machine;
mod nvme;
mod smmu;
mod support;

use std::env;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use smmuv3_qemu::Qemu;

use support::TestResult;

/// Makes the list of tests. A trial has the name of its function.
macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*]
    };
}

/// The name of a test, and what it does.
type Test = (&'static str, fn(&Qemu) -> TestResult);

const TESTS: &[Test] = tests![
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
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let qemu = Qemu::find();
    let required = env::var_os("SMMUV3_REQUIRE_QEMU").is_some_and(|value| value == "1");
    let ignored = match &qemu {
        Err(error) if error.is_missing() && !required => {
            eprintln!("smmuv3-qemu: left out {} tests: {error}", TESTS.len());
            true
        }
        _ => false,
    };
    let trials = TESTS
        .iter()
        .map(|&(name, test)| {
            let qemu = qemu.clone();
            Trial::test(name, move || test(&qemu?)).with_ignored_flag(ignored)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
