//! The lab: runs the driver on the software model, or on the SMMUv3 of a real QEMU, and reports what happened.
//!
//! Exit codes: 0, all is as it should be; 1, it is not; 2, the run could not be made (bad arguments, no QEMU, a
//! file that can't be written). Codes 1 and 2 come with one line on standard error.

#![forbid(unsafe_code)]

mod bench;
mod model;
mod qemu;
mod report;
mod scenario;
mod session;
mod storm;
mod tap;

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runs the SMMUv3 driver and reports what happened. Without a command: the quick start on the model.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a scenario. Without a file the quick start: two devices, two domains, DMA both ways, unmap, the DMA that now faults, detach.
    Run(Run),
    /// Storms over the model: random operations and DMA from a seed, for a time (docs/storm.md).
    Storm(storm::Storm),
    /// Measures what the driver costs, beside other ways to do the same (docs/performance.md).
    Bench(bench::Bench),
}

#[derive(Args)]
struct Run {
    /// A scenario (docs/scenarios.md says what may stand in it).
    #[arg(value_name = "FILE.toml")]
    scenario: Option<PathBuf>,
    /// What stands in for the hardware.
    #[arg(long, value_enum, default_value_t = Backend::Model)]
    backend: Backend,
    /// Everything random follows from this number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    /// The software model.
    Model,
    /// QEMU 9.2 or newer, with its edu and NVMe devices. Environment variable SMMUV3_QEMU names the program.
    Qemu,
}

impl Default for Run {
    fn default() -> Self {
        Run { scenario: None, backend: Backend::Model, seed: 1, json: None }
    }
}

fn main() -> ExitCode {
    if smmuv3_bench::instructions::serve() {
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => error.exit(),
        Err(error) => {
            return cannot(error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: "));
        }
    };
    let run = match cli.command.unwrap_or(Command::Run(Run::default())) {
        Command::Run(run) => run,
        Command::Bench(bench) => {
            return match bench::run(&bench) {
                Ok(bench::Ended::Well) => ExitCode::SUCCESS,
                Ok(bench::Ended::Short(why)) => wrong(why),
                Err(why) => cannot(why),
            };
        }
        Command::Storm(storm) => {
            return match storm::run(&storm) {
                Ok(storm::Ended::Well) => ExitCode::SUCCESS,
                Ok(storm::Ended::Wrong(why)) => wrong(why),
                Err(why) => cannot(why),
            };
        }
    };
    // The file first: a run whose report can't be kept is not worth making.
    let json = match run.json.as_ref().map(|path| File::create(path).map_err(|error| (path, error))) {
        None => None,
        Some(Ok(file)) => Some(file),
        Some(Err((path, error))) => return cannot(format!("cannot write {}: {error}", path.display())),
    };
    let report = match (&run.scenario, run.backend) {
        (Some(path), backend) => match scenario::run(path, backend, run.seed) {
            Err(error) => return cannot(error),
            Ok(report) => Ok(report),
        },
        (None, Backend::Model) => model::run(run.seed),
        (None, Backend::Qemu) => match smmuv3_qemu::Qemu::find() {
            Err(error) => return cannot(error),
            Ok(qemu) => qemu::run(&qemu, run.seed),
        },
    };
    let report = match report {
        Ok(report) => report,
        Err(error) => return wrong(error),
    };
    println!("\n{}", report.table());
    if let Some(mut file) = json {
        let written = serde_json::to_writer_pretty(&mut file, &report).map_err(Box::<dyn Error>::from);
        if let Err(error) = written.and_then(|()| Ok(writeln!(file)?)) {
            return cannot(format!("cannot write the report: {error}"));
        }
    }
    match report.verdict() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => wrong(why),
    }
}

/// The run could not be made.
fn cannot(why: impl std::fmt::Display) -> ExitCode {
    eprintln!("smmuv3-lab: {why}");
    ExitCode::from(2)
}

/// The run was made, and something in it was wrong.
fn wrong(why: impl std::fmt::Display) -> ExitCode {
    eprintln!("smmuv3-lab: {why}");
    ExitCode::FAILURE
}
