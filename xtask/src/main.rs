//! `cargo xtask qemu-virt` builds the bare-metal image in `image/qemu-virt`, boots it on QEMU, and checks what it says and what it did to its disks.
//!
//! Exit codes: 0, all is as it should be; 1, it is not, and standard error says what.

#![forbid(unsafe_code)]

mod build;
mod machine;
#[path = "../../image/qemu-virt/src/pattern.rs"]
mod pattern;
mod report;
mod size;

use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use smmuv3_qemu::Qemu;

use crate::machine::Machine;
use crate::report::SABOTAGES;

/// What it takes to build and run the image.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the image, boots it on QEMU 9.2 or newer (environment variable SMMUV3_QEMU names another program), and checks what comes of it: at EL1 and at
    /// EL2, with one SMMU, and, where QEMU is 10.2 or newer, with two and one domain over both.
    QemuVirt(QemuVirt),
    /// Builds the image and counts the driver's code in it. The profile can be changed by Cargo's environment variables, such as CARGO_PROFILE_RELEASE_OPT_LEVEL=s.
    Size(Build),
}

#[derive(clap::Args)]
struct Build {
    /// Build with Debian's compiler in /usr/bin, and core from its sources; else only where the compiler in use has not the target.
    #[arg(long)]
    debian: bool,
}

#[derive(clap::Args)]
struct QemuVirt {
    /// Only the machine with so many SMMUs: 1 or 2.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=2))]
    smmus: Option<u8>,
    /// Only the machine that starts the image at this exception level: 1 or 2.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=2))]
    el: Option<u8>,
    /// How long a run may take.
    #[arg(long, value_name = "NUMBER", default_value_t = 120)]
    seconds: u64,
    /// Instead, have the image do wrong what it knows how to do wrong, on one SMMU at EL1: each time it must notice, and fail.
    #[arg(long, conflicts_with_all = ["smmus", "el"])]
    sabotage: bool,
    #[command(flatten)]
    build: Build,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::QemuVirt(options) => qemu_virt(&options),
        Command::Size(options) => size(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn size(options: &Build) -> Result<(), Box<dyn Error>> {
    let image = build::image(options.debian)?;
    let size = size::code(&fs::read(&image)?).ok_or_else(|| format!("{} is no such ELF file", image.display()))?;
    println!("{size}");
    Ok(())
}

fn qemu_virt(options: &QemuVirt) -> Result<(), Box<dyn Error>> {
    let qemu = Qemu::find()?;
    let several = qemu.has_several_smmus();
    let needs = format!("two SMMUs need QEMU {} or newer, this is {}", Qemu::SEVERAL_SMMUS, qemu.version());
    if !several && options.smmus == Some(2) {
        return Err(needs.into());
    }
    let image = build::image(options.build.debian)?;
    let limit = Duration::from_secs(options.seconds);
    if options.sabotage {
        for sabotage in &SABOTAGES {
            Machine { el: 1, smmus: 1 }.run_sabotaged(&qemu, &image, sabotage, limit)?;
            println!("sabotage {}: the image failed, as it should", sabotage.name);
        }
        return Ok(());
    }
    for (el, smmus) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        let chosen = options.smmus.unwrap_or(smmus) == smmus && options.el.unwrap_or(el) == el;
        if !chosen || smmus > 1 && !several {
            continue;
        }
        let machine = Machine { el, smmus };
        println!("{machine}, QEMU {}", qemu.version());
        let report = machine.run(&qemu, &image, limit)?;
        println!("{machine}: {report}");
    }
    if !several && options.smmus.is_none() {
        println!("left out: {needs}");
    }
    Ok(())
}
