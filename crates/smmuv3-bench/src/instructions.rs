//! Instructions, counted by valgrind's callgrind: exact, however many others use the machine.
//!
//! A program counts by running itself under valgrind: the child does nothing but one operation, so many times ([`serve`]). Two
//! runs with different numbers of calls differ by those calls alone, so that what comes before and after cancels out.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Bound, Figure, table};

/// An operation whose instructions are counted.
pub(crate) struct Operation {
    pub(crate) part: &'static str,
    pub(crate) name: &'static str,
    pub(crate) at_most: f64,
    /// Does it so many times, warm.
    pub(crate) run: fn(u32),
}

const OPERATIONS: &[&[Operation]] = &[table::OPERATIONS];

/// Says to a child what to do: the number of an operation, a colon, how often.
const VARIABLE: &str = "SMMUV3_BENCH_COUNTED";
const CALLS: u32 = 1000;

fn operations() -> impl Iterator<Item = &'static Operation> {
    OPERATIONS.iter().copied().flatten()
}

/// To be called first by a program that gives itself to [`figures`]: does the work of a child. True if that is what this process is, and
/// it is to end.
pub fn serve() -> bool {
    let Ok(order) = env::var(VARIABLE) else { return false };
    let order = order.split_once(':').and_then(|(number, calls)| Some((number.parse().ok()?, calls.parse().ok()?)));
    let (number, calls) = order.expect("this variable is set by this program only");
    let operation = operations().nth(number).expect("the number is from the same list");
    (operation.run)(calls);
    true
}

/// The instructions of every operation, counted by running `program`, which calls [`serve`]. An operation that could not be counted, as where
/// there is no valgrind, is left out; its name stands in the second list, with the reason.
pub fn figures(program: &Path) -> (Vec<Figure>, Vec<String>) {
    let (mut figures, mut missing) = (Vec::new(), Vec::new());
    for (number, operation) in operations().enumerate() {
        let counted = |calls| count(program, number, calls);
        match counted(CALLS).and_then(|once| Ok((counted(2 * CALLS)?, once))) {
            Ok((twice, once)) => {
                let each = (twice as f64 - once as f64) / f64::from(CALLS);
                let figure = Figure::new(operation.part, operation.name, each, "instructions");
                figures.push(figure.bounded(Bound::AtMost(operation.at_most)));
            }
            Err(reason) => missing.push(format!("{}, {}: {reason}", operation.part, operation.name)),
        }
    }
    (figures, missing)
}

/// The instructions of a child, from its first to its last.
fn count(program: &Path, number: usize, calls: u32) -> Result<u64, String> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .env(VARIABLE, format!("{number}:{calls}"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("valgrind: {}: {}", output.status, said.lines().last().unwrap_or_default()));
    }
    let counted = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    counted.ok_or_else(|| "valgrind says no number".into())
}
