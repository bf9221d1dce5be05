//! Scenario files: a machine, and steps that are carried out on it. `docs/scenarios.md` is for those who write them.
//!
//! | module | what it is |
//! |---|---|
//! | `file`, `step` | the file as it is written |
//! | `source` | its text: what is wrong, and in which line |
//! | `check` | what can be known to be wrong before anything runs |
//! | `hardware` | what stands in for the hardware: `on_model`, `on_qemu`, which also says what QEMU lacks |
//! | `table`, `foreign` | tables that are not the driver's, of processes and guests |
//! | `books` | which buffers are mapped where |
//! | `rig` | the machine, set up |
//! | `run`, `dma` | the steps |

mod books;
mod check;
mod dma;
mod file;
mod foreign;
mod hardware;
mod on_model;
mod on_qemu;
mod rig;
mod run;
mod source;
mod step;
mod table;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Backend;
use crate::report::Report;
use hardware::Hardware;
use on_model::OnModel;
use on_qemu::OnQemu;
use rig::Rig;
use source::Source;

/// Runs the scenario in a file. An error is one line: it could not be run, and nothing was.
pub(crate) fn run(path: &Path, backend: Backend, seed: u64) -> Result<Report, String> {
    let source = Source::read(path)?;
    let tell = |problem| source.tell(&problem);
    let file = source.parse().map_err(tell)?;
    check::check(&file).map_err(tell)?;
    match backend {
        Backend::Model => run_on(&source, &file, OnModel::new(&file, seed), seed),
        Backend::Qemu => {
            on_qemu::check(&file).map_err(tell)?;
            let qemu = smmuv3_qemu::Qemu::find().map_err(|error| error.to_string())?;
            on_qemu::check_version(&file, &qemu).map_err(tell)?;
            let hardware = OnQemu::new(&qemu, &file).map_err(|error| error.to_string())?;
            run_on(&source, &file, hardware, seed)
        }
    }
}

fn run_on<H: Hardware>(source: &Source, file: &file::File, mut hardware: H, seed: u64) -> Result<Report, String> {
    let registers = (0..file.smmu.len()).map(|smmu| hardware.mmio(smmu)).collect();
    println!("{}", file.name);
    let rig = Rig::new(source, file, &hardware, registers, seed).map_err(|problem| source.tell(&problem))?;
    Ok(rig.run())
}

/// Locks; that another thread panicked is told by that thread.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
