//! Runs tests that need a QEMU, and leaves them out where there is none that would do.

use std::env;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use smmuv3_qemu::Qemu;

pub(crate) type TestResult = Result<(), Failed>;

/// The name of a test, and what it does.
type Test = (&'static str, fn(&Qemu) -> TestResult);

/// What is needed, and whether a QEMU has it.
type Need = (&'static str, fn(&Qemu) -> bool);

/// A list of tests.
pub(crate) struct Tests {
    /// What those in `list` need that not every QEMU has.
    pub(crate) needs: Option<Need>,
    pub(crate) list: &'static [Test],
}

/// Makes the list of tests. A trial has the name of its function.
macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*]
    };
}
pub(crate) use tests;

/// The `main` of a test program.
pub(crate) fn run(tests: &[Tests]) -> ExitCode {
    let arguments = Arguments::from_args();
    let qemu = Qemu::find();
    let required = env::var_os("SMMUV3_REQUIRE_QEMU").is_some_and(|value| value == "1");
    let mut trials = Vec::new();
    for Tests { needs, list } in tests {
        let why = match (&qemu, needs) {
            (Err(error), _) if error.is_missing() && !required => Some(error.to_string()),
            (Ok(qemu), Some((what, has))) if !has(qemu) => {
                Some(format!("they need {what}, and {} is QEMU {}", qemu.path().display(), qemu.version()))
            }
            _ => None,
        };
        if let Some(why) = &why {
            eprintln!("smmuv3-qemu: left out {} tests: {why}", list.len());
        }
        trials.extend(list.iter().map(|&(name, test)| {
            let qemu = qemu.clone();
            Trial::test(name, move || test(&qemu?)).with_ignored_flag(why.is_some())
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
