//! Benchmarks: the table, the JSON and the plots of what `smmuv3-bench` measures.

mod plot;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use smmuv3_bench::{Curve, Effort, Figure, Results, array, queue, section, table, unmap};

/// What is measured.
#[derive(Args)]
pub(crate) struct Bench {
    /// Only measurements whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Rounds of each measurement, of which the best counts.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// How long a round lasts, about, in milliseconds.
    #[arg(long, default_value_t = 8)]
    round_ms: u64,
    /// Write all figures and curves as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the curves as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Fail if a figure is not within its bound.
    #[arg(long)]
    strict: bool,
}

/// How a run ended.
pub(crate) enum Ended {
    Well,
    /// A figure is not within its bound, and `--strict` was given.
    Short(String),
}

type Measurement = (&'static str, fn(Effort) -> Results);

/// The smallest first, before the machines of the others fill the heap and the caches.
const MEASUREMENTS: &[Measurement] = &[
    ("array", |effort| array::figures(effort).into()),
    ("read section", |effort| section::figures(effort).into()),
    ("command queue", |effort| queue::figures(effort).into()),
    ("table", |effort| table::figures(effort).into()),
    ("instructions", |_| instructions()),
    ("unmap: SMMUs", unmap::against_smmus),
    ("unmap: ATS devices", unmap::against_devices),
    ("unmap: threads", unmap::against_threads),
    ("unmap: gathered", unmap::gathered),
    ("unmap: attach", unmap::attach),
    ("unmap: ATC pages", |_| unmap::atc_pages()),
];

/// Counted by running this program again, under callgrind.
fn instructions() -> Results {
    let Ok(program) = std::env::current_exe() else { return Results::default() };
    let (figures, missing) = smmuv3_bench::instructions::figures(&program);
    missing.iter().for_each(|missing| eprintln!("smmuv3-lab: left out: {missing}"));
    figures.into()
}

/// The JSON.
#[derive(Serialize)]
struct Json<'a> {
    cpus: usize,
    figures: Vec<JsonFigure<'a>>,
    curves: Vec<JsonCurve<'a>>,
}

#[derive(Serialize)]
struct JsonFigure<'a> {
    part: &'a str,
    name: &'a str,
    value: f64,
    unit: &'a str,
    bound: Option<String>,
    holds: bool,
}

#[derive(Serialize)]
struct JsonCurve<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    series: &'a [(&'a str, Vec<(f64, f64)>)],
}

pub(crate) fn run(bench: &Bench) -> Result<Ended, Box<dyn Error>> {
    let effort = Effort { rounds: bench.rounds.max(1), round: Duration::from_millis(bench.round_ms.max(1)) };
    let chosen: Vec<&Measurement> = MEASUREMENTS.iter().filter(|(name, _)| name.contains(&bench.only)).collect();
    if chosen.is_empty() {
        return Err(format!("no measurement's name contains {:?}", bench.only).into());
    }
    let bar = ProgressBar::new(chosen.len() as u64);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}")?);
    let mut all = Results::default();
    for (name, measure) in chosen {
        bar.set_message(*name);
        let results = measure(effort);
        all.figures.extend(results.figures);
        all.curves.extend(results.curves);
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{}", table(&all.figures));
    if let Some(path) = &bench.json {
        fs::write(path, json(&all)?).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    if let Some(path) = &bench.svg {
        plot::write(path, &all.curves).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    let short: Vec<&Figure> = all.figures.iter().filter(|figure| !figure.holds()).collect();
    let bounded = all.figures.iter().filter(|figure| figure.bound.is_some()).count();
    println!("{} figures, {} of {bounded} bounds kept", all.figures.len(), bounded - short.len());
    match short.first() {
        Some(first) if bench.strict => Ok(Ended::Short(format!(
            "{} figures are not within their bounds; the first: {} is {}",
            short.len(),
            first.name,
            rounded(first.value)
        ))),
        _ => Ok(Ended::Well),
    }
}

fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["part", "what", "value", "", "bound", ""]);
    for figure in figures {
        let verdict = match figure.bound {
            None => "",
            Some(_) if figure.holds() => "kept",
            Some(_) => "NOT KEPT",
        };
        let bound = figure.bound.map(|bound| bound.to_string()).unwrap_or_default();
        table.add_row([figure.part, &figure.name, &rounded(figure.value), figure.unit, &bound, verdict]);
    }
    table
}

fn json(results: &Results) -> serde_json::Result<String> {
    let figures = results.figures.iter().map(|figure| JsonFigure {
        part: figure.part,
        name: &figure.name,
        value: figure.value,
        unit: figure.unit,
        bound: figure.bound.map(|bound| bound.to_string()),
        holds: figure.holds(),
    });
    let curves = results.curves.iter().map(|Curve { title, x, y, series }| JsonCurve { title, x, y, series });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    serde_json::to_string_pretty(&Json { cpus, figures: figures.collect(), curves: curves.collect() })
}

/// Three digits that matter.
fn rounded(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
