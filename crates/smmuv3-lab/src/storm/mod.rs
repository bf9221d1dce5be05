//! Storms: random operations of many threads on the software model, from a seed, for a time.
//!
//! Rounds alternate. In a *replayable* round threads take turns at seeded points, and devices access what the driver is just
//! working on; if it fails, its history is made short and written to a file that fails again. In a *parallel* round
//! threads run as they like. `docs/storm.md` is for those who run storms.
//!
//! | module | what it is |
//! |---|---|
//! | `machine`, `op` | what is in a history: the machine, the operations |
//! | `history` | its file |
//! | `turns`, `context`, `host` | who runs when, and what happens at a point |
//! | `books`, `guest`, `world` | the machine, set up |
//! | `carry_out` | the operations, and what must hold after them |
//! | `round` | replayable and parallel rounds |
//! | `shrink` | a long history made short |
//! | `tally` | what is counted |

mod books;
mod carry_out;
mod context;
mod guest;
mod history;
mod host;
mod machine;
mod op;
mod rng;
mod round;
mod shrink;
mod tally;
mod turns;
mod world;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::report::Report;
use history::History;
use machine::{MAX_SMMUS, Machine};
use op::Step;
use rng::{Rng, derive};
use round::{Failure, Outcome};
use shrink::{Failing, shrink};
use tally::{More, Totals};

/// How long rounds of a kind go on before the other kind has its turn.
const SHIFT: Duration = Duration::from_secs(1);
/// Memory of the machine of a replayable round, and of a parallel one.
const SMALL_MIB: usize = 12;
const LARGE_MIB: usize = 96;
/// How long a failing history is made shorter, and how long a parallel failure is looked for in histories that can be run again.
const SHRINKING: Duration = Duration::from_secs(60);
const REPRODUCING: Duration = Duration::from_secs(15);

/// What a storm is asked to do.
#[derive(Args)]
pub(crate) struct Storm {
    /// Everything random follows from this number; in parallel rounds also from when threads run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to storm.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// SMMUs, 1 to 16.
    #[arg(long, default_value_t = 8)]
    smmus: usize,
    /// Devices.
    #[arg(long, default_value_t = 64)]
    devices: usize,
    /// Domains; one in four is stage 2.
    #[arg(long, default_value_t = 16)]
    domains: usize,
    /// Threads of a parallel round. With 1, all rounds are replayable.
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// What the SMMUs are lazy in: all, none, or names with commas between.
    #[arg(long, default_value = "all")]
    laziness: String,
    /// What the SMMUs ignore, to see the storm find it.
    #[arg(long, value_name = "NAME")]
    sabotage: Option<String>,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where a failing history goes.
    #[arg(long, value_name = "FILE", default_value = "storm-history.json")]
    history: PathBuf,
    /// Run the history in this file, and nothing else.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
}

/// How a storm ended.
pub(crate) enum Ended {
    /// All is as it should be.
    Well,
    /// Something went wrong: one line.
    Wrong(String),
}

/// Runs a storm. An error is one line: it could not be run.
pub(crate) fn run(storm: &Storm) -> Result<Ended, String> {
    round::catch_panics();
    let json = match &storm.json {
        Some(path) => Some(File::create(path).map_err(|error| format!("cannot write {}: {error}", path.display()))?),
        None => None,
    };
    let (totals, more, failure) = match &storm.replay {
        Some(path) => storm.replay(path)?,
        None => storm.rounds()?,
    };
    let report = totals.finish(more);
    let mut table = report.report.table();
    let rounds = format!("{} replayable, {} parallel", report.replayable_rounds, report.parallel_rounds);
    table.add_row(["rounds".to_owned(), rounds]);
    table.add_row(["operations".to_owned(), format!("{}, {} unmaps", report.operations, report.unmaps)]);
    println!("{table}");
    if let Some(mut file) = json {
        let written = serde_json::to_writer_pretty(&mut file, &report).map_err(|error| error.to_string());
        written
            .and_then(|()| writeln!(file).map_err(|error| error.to_string()))
            .map_err(|error| format!("cannot write the report: {error}"))?;
    }
    Ok(match (failure, report.report.verdict()) {
        (Some(failure), _) => Ended::Wrong(failure),
        (None, Err(why)) => Ended::Wrong(why),
        (None, Ok(())) => Ended::Well,
    })
}

/// What was counted, what was asked for, and what went wrong in one line.
type Stormed = (Totals, More, Option<String>);

impl Storm {
    /// Rounds until the time is over or one fails.
    fn rounds(&self) -> Result<Stormed, String> {
        let asked = Machine {
            seed: self.seed,
            luck: 0,
            ram_mib: LARGE_MIB,
            smmus: self.smmus,
            devices: self.devices,
            domains: self.domains,
            guests: self.smmus.min(MAX_SMMUS),
            laziness: machine::lazy_names(&self.laziness)?,
            sabotage: self.sabotage.clone(),
        };
        asked.check()?;
        if !(1..=64).contains(&self.threads) {
            return Err(format!("threads = {}, expected 1 to 64", self.threads));
        }
        let mut totals = Totals::new(self.report(&asked))?;
        let start = Instant::now();
        let end = start + Duration::from_secs(self.seconds);
        let bar = progress(self.seconds);
        let mut shift_end = start;
        let mut parallel_is_next = false;
        let mut failed = None;
        while Instant::now() < end && failed.is_none() {
            let look = |totals: &Totals| {
                bar.set_position(start.elapsed().as_secs().min(self.seconds));
                let rounds = totals.replayable_rounds + totals.parallel_rounds;
                bar.set_message(format!("{rounds} rounds, {} DMA checked", totals.report.dma_checked));
            };
            let (machine, outcome) = if parallel_is_next {
                let seed = derive(self.seed, !totals.parallel_rounds);
                let machine = Machine { seed, luck: seed, ..asked.clone() };
                let time = SHIFT.min(end.saturating_duration_since(Instant::now()));
                let outcome = round::parallel(&machine, self.threads, time, || look(&totals))?;
                totals.parallel_rounds += 1;
                shift_end = Instant::now() + SHIFT;
                (machine, outcome)
            } else {
                let machine = small(&asked, derive(self.seed, totals.replayable_rounds));
                let outcome = round::replay(&machine, &round::random_steps(&machine))?;
                totals.replayable_rounds += 1;
                (machine, outcome)
            };
            totals.add(&outcome.tally, &outcome.seen);
            look(&totals);
            if let Some(failure) = outcome.failure {
                failed = Some((parallel_is_next, Failing { machine, failure, steps: outcome.steps }));
            }
            parallel_is_next = self.threads > 1 && !parallel_is_next && Instant::now() >= shift_end;
        }
        let time = start.elapsed();
        let failure = failed.map(|(parallel, failing)| match parallel {
            true => self.parallel_failure(failing, &bar),
            false => self.replayable_failure(failing, &bar),
        });
        bar.finish_and_clear();
        if let Some(failure) = &failure {
            totals.report.surprises.push(failure.clone());
        } else if totals.report.dma_checked == 0 || totals.report.faults_expected == 0 {
            totals.report.surprises.push("the storm checked nothing".to_owned());
        }
        let more = self.more(asked.domains, self.threads, time, asked.laziness);
        Ok((totals, more, failure))
    }

    /// Runs the history in a file.
    fn replay(&self, path: &Path) -> Result<Stormed, String> {
        let history = History::read(path)?;
        let mut totals = Totals::new(self.report(&history.machine))?;
        totals.report.seed = history.machine.seed;
        let start = Instant::now();
        print_steps(&history.steps);
        let outcome = round::replay(&history.machine, &history.steps)?;
        totals.replayable_rounds = 1;
        totals.add(&outcome.tally, &outcome.seen);
        let failure = outcome.failure.map(|found| {
            println!("{}", found.what);
            let same = if found == history.failure { "the same failure" } else { "another failure" };
            format!("{same} as in {}: {}", path.display(), one_line(&found))
        });
        if failure.is_none() {
            println!("{} does not fail", path.display());
        }
        totals.report.surprises.extend(failure.clone());
        let threads = history.steps.iter().map(|step| step.thread + 1).max().unwrap_or(0);
        let more = self.more(history.machine.domains, threads, start.elapsed(), history.machine.laziness);
        Ok((totals, more, failure))
    }

    fn report(&self, machine: &Machine) -> Report {
        Report {
            backend: "model",
            scenario: "storm".to_owned(),
            seed: self.seed,
            smmus: machine.smmus as u32,
            devices: machine.devices as u32,
            ..Report::default()
        }
    }

    fn more(&self, domains: usize, threads: usize, time: Duration, laziness: Vec<String>) -> More {
        More { domains, threads, seconds: time.as_secs_f64(), laziness }
    }

    /// A replayable round failed: a short history of it goes into a file. Returns one line.
    fn replayable_failure(&self, failing: Failing, bar: &ProgressBar) -> String {
        let known = failing.steps.len();
        let look = |steps| bar.set_message(format!("{steps} of {known} steps still fail"));
        look(known);
        let Failing { machine, failure, steps } = shrink(failing, Instant::now() + SHRINKING, look);
        bar.suspend(|| {
            println!("{} of {known} steps make it fail:", steps.len());
            print_steps(&steps);
            println!("{}", failure.what);
        });
        let line = one_line(&failure);
        let history = History { machine, failure, steps };
        match history.write(&self.history) {
            Ok(()) => format!("{line}; run it again with: storm --replay {}", self.history.display()),
            Err(error) => format!("{line}; {error}"),
        }
    }

    /// A parallel round failed: looks for a history that fails in the same way, too. Returns one line.
    fn parallel_failure(&self, failing: Failing, bar: &ProgressBar) -> String {
        let Failing { machine, failure, steps } = failing;
        bar.suspend(|| println!("A parallel round (seed {:#x}) failed:\n{}", machine.seed, failure.what));
        // Building it takes less time with less memory.
        let whole = Machine { ram_mib: SMALL_MIB.max(2 * machine.domains), ..machine.clone() };
        let end = Instant::now() + REPRODUCING;
        let mut tries = 0;
        while Instant::now() < end {
            bar.set_message(format!("looking for a history that fails again: try {tries}"));
            let seed = derive(machine.seed, tries);
            tries += 1;
            let (machine, steps) = if tries % 2 == 1 {
                (whole.clone(), interleaved(&steps, seed))
            } else {
                let machine = small(&machine, seed);
                let steps = round::random_steps(&machine);
                (machine, steps)
            };
            let Ok(Outcome { failure: again, steps, .. }) = round::replay(&machine, &steps) else { break };
            if let Some(again) = again.filter(|again| again.kind == failure.kind) {
                let whose = if tries % 2 == 1 { "Its last steps fail" } else { "A replayable round fails" };
                bar.suspend(|| println!("{whose} in the same way (try {tries})."));
                return self.replayable_failure(Failing { machine, failure: again, steps }, bar);
            }
        }
        let line = one_line(&failure);
        format!("{line} (in a parallel round; {tries} tries found no history that fails again)")
    }
}

/// The machine of a replayable round: small, so that operations meet.
fn small(asked: &Machine, seed: u64) -> Machine {
    let mut rng = Rng::new(seed);
    let mut up_to = |asked: usize, most: usize| 1 + rng.below(asked.min(most));
    Machine {
        seed,
        luck: seed,
        ram_mib: SMALL_MIB,
        smmus: up_to(asked.smmus, 3),
        devices: up_to(asked.devices, 8),
        domains: up_to(asked.domains, 4),
        guests: up_to(3, 3),
        ..asked.clone()
    }
}

/// The steps of all threads, mixed. Those of each thread stay in order.
fn interleaved(steps: &[Step], seed: u64) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    let threads = steps.iter().map(|step| step.thread + 1).max().unwrap_or(0);
    let of = |thread| steps.iter().filter(move |step| step.thread == thread).cloned();
    let mut left: Vec<_> = (0..threads).map(|thread| of(thread).peekable()).collect();
    let mut mixed = Vec::with_capacity(steps.len());
    while !left.is_empty() {
        let thread = rng.below(left.len());
        match left[thread].next() {
            Some(step) => mixed.push(Step { seed: rng.next() | 1, ..step }),
            None => drop(left.swap_remove(thread)),
        }
    }
    mixed
}

fn print_steps(steps: &[Step]) {
    for step in steps {
        println!("    {step}");
    }
}

fn one_line(failure: &Failure) -> String {
    let first = failure.what.lines().next().unwrap_or_default();
    format!("{:?}: {first}", failure.kind)
}

/// A progress bar; on standard error, and only on a terminal.
fn progress(seconds: u64) -> ProgressBar {
    let bar = ProgressBar::new(seconds);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} s  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Locks; that another thread panicked is told by that thread.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
