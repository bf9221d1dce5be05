//! The command line as a user meets it: exit codes, one clear line for what cannot be, the report.
//!
//! Without a QEMU that is new enough the runs on it are ignored, and standard error says so; with
//! `SMMUV3_REQUIRE_QEMU=1` they fail instead.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

type TestResult = Result<(), Failed>;
/// The name of a test, and what it does.
type Test = (&'static str, fn() -> TestResult);

fn lab(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smmuv3-lab"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    lab(arguments).output().expect("the lab starts")
}

/// The run is refused with exit code 2 and one line that contains `words`.
fn refused(output: Output, words: &[&str]) -> TestResult {
    let stderr = String::from_utf8(output.stderr)?;
    if output.status.code() != Some(2) || stderr.lines().count() != 1 || !words.iter().all(|word| stderr.contains(word))
    {
        return Err(format!("{}: {stderr:?} should be one line with {words:?}", output.status).into());
    }
    Ok(())
}

/// Runs with a JSON report, which is checked for what every good run has.
fn report(arguments: &[&str]) -> Result<Value, Failed> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("report.json");
    let output = lab(arguments).arg("--json").arg(&file).output()?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    let report: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let number = |name: &str| report[name].as_u64().ok_or(format!("{name} is no number: {report}"));
    assert_eq!(number("stale_dma")?, 0);
    assert!(number("faults_expected")? > 0);
    assert_eq!(number("faults_expected")?, number("faults_seen")?);
    assert!(number("dma_checked")? >= 1000);
    assert_eq!(number("invalidations")?, number("wait_rounds")?, "one wait for each invalidation");
    assert!(number("invalidations")? > 0 && number("syncs")? >= number("invalidations")?);
    for name in ["seed", "smmus", "devices", "atc_pages_requested", "atc_pages_invalidated"] {
        number(name)?;
    }
    for name in ["p50", "p99", "max"] {
        assert!(report["unmap_ns"][name].as_u64().is_some_and(|ns| ns > 0), "{report}");
    }
    assert!(report["commands"]["TLBI_NH_VA"].as_u64().is_some_and(|count| count > 0), "{report}");
    Ok(report)
}

fn the_quick_start_succeeds_without_arguments() -> TestResult {
    let output = run(&[]);
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout)?;
    for words in ["F_TRANSLATION: StreamID 0x18, write to 0x100000", "stale DMA", "faults expected", "detached both"] {
        assert!(stdout.contains(words), "{words:?} is not in {stdout}");
    }
    Ok(())
}

fn the_model_s_report_is_complete() -> TestResult {
    let report = report(&["run", "--seed", "5"])?;
    assert_eq!((&report["backend"], &report["seed"]), (&"model".into(), &5.into()));
    Ok(())
}

fn bad_arguments_are_told_in_one_line() -> TestResult {
    refused(run(&["run", "--backend", "abacus"]), &["abacus", "--backend"])?;
    refused(run(&["run", "--seed", "many"]), &["many", "--seed"])?;
    refused(run(&["walk"]), &["walk"])
}

fn a_file_that_cannot_be_written_is_told_in_one_line() -> TestResult {
    refused(run(&["run", "--json", "/nonexistent/report.json"]), &["cannot write", "/nonexistent/report.json"])
}

fn a_missing_qemu_is_told_in_one_line() -> TestResult {
    let output = lab(&["run", "--backend", "qemu"]).env("SMMUV3_QEMU", "/nonexistent/qemu").output()?;
    refused(output, &["/nonexistent/qemu"])?;
    let empty = tempfile::tempdir()?;
    let output = lab(&["run", "--backend", "qemu"]).env_remove("SMMUV3_QEMU").env("PATH", empty.path()).output()?;
    refused(output, &["qemu-system-aarch64", "bookworm-backports"])
}

fn help_and_version_are_not_errors() -> TestResult {
    assert!(run(&["--help"]).status.success());
    assert!(run(&["--version"]).status.success());
    Ok(())
}

fn benchmarks_are_written_as_json_and_svg() -> TestResult {
    let folder = tempfile::tempdir()?;
    let (json, svg) = (folder.path().join("bench.json"), folder.path().join("bench.svg"));
    let arguments = ["bench", "--only", "unmap: A", "--rounds", "1", "--round-ms", "1", "--json"];
    let output = lab(&arguments).arg(&json).arg("--svg").arg(&svg).output()?;
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(json)?)?;
    let pages = |name: &str| {
        let figures = report["figures"].as_array().into_iter().flatten();
        figures.filter(|figure| figure["name"] == name).find_map(|figure| figure["value"].as_f64())
    };
    let (ours, worst) = (pages("2000 ranges of 1 to 200 pages, this driver"), pages("the worst of them"));
    assert!(ours >= Some(1.0) && worst > ours && worst < Some(2.0), "{report}");
    let plot = std::fs::read_to_string(svg)?;
    assert!(plot.starts_with("<svg") && plot.contains("against the number of ATS devices"), "{plot}");
    refused(run(&["bench", "--only", "nothing like it"]), &["nothing like it"])
}

fn the_driver_runs_on_qemu() -> TestResult {
    let report = report(&["run", "--backend", "qemu"])?;
    assert_eq!(report["backend"], "qemu");
    assert_eq!(report["surprises"], Value::Array(Vec::new()));
    assert!(!Path::new("report.json").exists());
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let qemu = smmuv3_qemu::Qemu::find();
    let required = env::var_os("SMMUV3_REQUIRE_QEMU").is_some_and(|value| value == "1");
    let left_out = match &qemu {
        Err(error) if error.is_missing() && !required => {
            eprintln!("smmuv3-lab: left out the run on QEMU: {error}");
            true
        }
        _ => false,
    };
    let tests: [Test; 7] = [
        ("the_quick_start_succeeds_without_arguments", the_quick_start_succeeds_without_arguments),
        ("the_model_s_report_is_complete", the_model_s_report_is_complete),
        ("bad_arguments_are_told_in_one_line", bad_arguments_are_told_in_one_line),
        ("a_file_that_cannot_be_written_is_told_in_one_line", a_file_that_cannot_be_written_is_told_in_one_line),
        ("a_missing_qemu_is_told_in_one_line", a_missing_qemu_is_told_in_one_line),
        ("benchmarks_are_written_as_json_and_svg", benchmarks_are_written_as_json_and_svg),
        ("help_and_version_are_not_errors", help_and_version_are_not_errors),
    ];
    let mut trials: Vec<Trial> = tests.into_iter().map(|(name, test)| Trial::test(name, test)).collect();
    trials.push(Trial::test("the_driver_runs_on_qemu", the_driver_runs_on_qemu).with_ignored_flag(left_out));
    libtest_mimic::run(&arguments, trials).exit_code()
}
