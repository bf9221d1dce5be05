//! Takes all figures and prints them.

use std::env;
use std::process::ExitCode;

use smmuv3_bench::{Effort, instructions, table};

fn main() -> ExitCode {
    if instructions::serve() {
        return ExitCode::SUCCESS;
    }
    let program = env::current_exe().expect("this program");
    let (mut figures, missing) = instructions::figures(&program);
    figures.extend(table::figures(Effort::default()));
    for figure in &figures {
        let bound = figure.bound.map(|bound| format!(" ({bound})")).unwrap_or_default();
        println!("{}: {}: {:.2} {}{bound}", figure.part, figure.name, figure.value, figure.unit);
    }
    missing.iter().for_each(|missing| println!("missing: {missing}"));
    if figures.iter().all(|figure| figure.holds()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
