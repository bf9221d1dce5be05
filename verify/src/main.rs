//! Runs what proves the driver, and prints one table:
//!
//! - **loom**: the driver's own code in every interleaving (`crates/smmuv3/src/loom_tests`);
//! - **litmus**: its barriers under Arm's memory model, with herd7 (`verify/litmus`);
//! - **mutants**: deliberate faults in the driver (`verify/mutants.toml`), each of which some check must catch.
//!
//! Exits with 0 only if everything is as expected. `verify/README.md` says what is proved by that, and what is not.

#![forbid(unsafe_code)]

mod check;
mod copy;
mod mutants;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

use check::{Check, Verdict};
use mutants::Mutants;
use table::Row;

/// Runs loom, herd7 and mutants of the driver; without a command, all of them.
#[derive(Parser)]
#[command(name = "cargo verify")]
struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Without a command: only every Nth of the mutants.
    #[arg(long, value_name = "N", default_value_t = 1)]
    one_in: usize,
}

#[derive(Subcommand)]
enum What {
    /// The models for the checker loom.
    Loom,
    /// The litmus tests, with herd7.
    Litmus,
    /// Deliberate faults in the driver, each of which must be caught.
    Mutants {
        /// Only mutants with this in their name.
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// Only checks with this in their description, such as `storm` or `loom`.
        #[arg(long, value_name = "TEXT")]
        check: Option<String>,
        /// Also checks that take long: those that `mutants.toml` calls slow.
        #[arg(long)]
        slow: bool,
        /// Writes the table of all mutants to verify/mutants.md; runs nothing.
        #[arg(long)]
        write: bool,
    },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("verify/ lies in the repository").to_path_buf()
}

fn run(args: Args) -> Result<bool, String> {
    let root = root();
    let mut rows = Vec::new();
    match args.what {
        None => {
            rows.extend(loom(&root)?);
            rows.extend(litmus(&root)?);
            let mutants = Mutants::read(&root)?;
            let picked: Vec<String> = mutants.names().step_by(args.one_in.max(1)).map(str::to_owned).collect();
            rows.extend(mutants.run(&root, |name, check| !check.slow && picked.iter().any(|picked| picked == name))?);
        }
        Some(What::Loom) => rows.extend(loom(&root)?),
        Some(What::Litmus) => rows.extend(litmus(&root)?),
        Some(What::Mutants { write: true, .. }) => {
            let path = root.join("verify/mutants.md");
            std::fs::write(&path, Mutants::read(&root)?.page())
                .map_err(|error| format!("{}: {error}", path.display()))?;
            return Ok(true);
        }
        Some(What::Mutants { only, check: wanted, slow, .. }) => {
            let has = |text: &Option<String>, of: &str| text.as_ref().is_none_or(|text| of.contains(text.as_str()));
            let pick = |name: &str, check: &Check| {
                has(&only, name) && has(&wanted, &check.to_string()) && (slow || !check.slow)
            };
            rows.extend(Mutants::read(&root)?.run(&root, pick)?);
        }
    }
    Ok(table::print(&rows))
}

fn loom(root: &Path) -> Result<Vec<Row>, String> {
    let check = Check { loom: Some(String::new()), ..Check::default() };
    let start = Instant::now();
    let run = check.run(root, root)?;
    let mut rows: Vec<Row> = run
        .output
        .lines()
        .filter_map(|line| {
            let (name, result) = line.strip_prefix("test loom_tests::")?.split_once(" ... ")?;
            // What the model says of itself stands on a line with its name.
            let said = run
                .output
                .lines()
                .find_map(|line| line.strip_prefix("loom_tests::")?.strip_prefix(name)?.strip_prefix(": "));
            Some(Row::new("loom", name, "ok", result.trim(), said.unwrap_or_default()))
        })
        .collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    if rows.is_empty() || (run.verdict != Verdict::Passed && rows.iter().all(Row::as_expected)) {
        eprintln!("{}", run.output);
        rows.push(Row::new("loom", "all models", "ok", &run.verdict.to_string(), ""));
    }
    eprintln!("loom: {:.0?}", start.elapsed());
    Ok(rows)
}

fn litmus(root: &Path) -> Result<Vec<Row>, String> {
    let start = Instant::now();
    let output = check::output(std::process::Command::new(root.join("verify/litmus/run")).arg("--lines"))?;
    let rows: Vec<Row> = output
        .text
        .lines()
        .filter_map(|line| match line.split('\t').collect::<Vec<_>>()[..] {
            [name, expected, observed] => Some(Row::new("litmus", name, expected, observed, "")),
            _ => None,
        })
        .collect();
    if rows.is_empty() {
        return Err(format!("verify/litmus/run said nothing that can be read:\n{}", output.text));
    }
    eprintln!("litmus: {:.0?}", start.elapsed());
    Ok(rows)
}
