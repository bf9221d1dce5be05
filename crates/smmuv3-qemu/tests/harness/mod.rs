//! Runs tests that need a QEMU, and leaves them out where there is none that would do.

use std::env;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use smmuv3_qemu::Qemu;

pub(crate) type TestResult = Result<(), Failed>;

/// The name of a test, and what it does.
type Test = (&'static str, fn(&Qemu) -> TestResult);

/// What not every QEMU has.
pub(crate) struct Need {
    pub(crate) what: &'static str,
    pub(crate) has: fn(&Qemu) -> bool,
    /// The environment variable that makes the tests fail where it is missing, rather than be ignored.
    pub(crate) variable: &'static str,
}

/// A list of tests.
pub(crate) struct Tests {
    /// What those in `list` need beside a QEMU.
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
    let required = |variable: &str| env::var_os(variable).is_some_and(|value| value == "1");
    let mut trials = Vec::new();
    for Tests { needs, list } in tests {
        let need_required = needs.as_ref().is_some_and(|need| required(need.variable));
        let why = match (&qemu, needs) {
            _ if need_required => None,
            (Err(error), _) if error.is_missing() && !required("SMMUV3_REQUIRE_QEMU") => Some(error.to_string()),
            (Ok(qemu), Some(Need { what, has, .. })) if !has(qemu) => {
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
