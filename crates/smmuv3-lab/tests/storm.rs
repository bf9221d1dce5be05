//! Storms as a user meets them: a good driver weathers one; where an SMMU forgets something, the storm finds it, makes the history short,
//! and the history fails again.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn storm(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smmuv3-lab"));
    command.arg("storm").args(arguments).current_dir(folder).output().expect("the lab starts")
}

fn json(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).expect("it was written")).expect("it is JSON")
}

#[test]
fn a_storm_finds_nothing_where_nothing_is_wrong_and_reports() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--seed", "7", "--seconds", "4", "--json", "report.json"];
    let output = storm(&arguments, folder.path());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "no progress bar where there is no terminal");
    let report = json(&folder.path().join("report.json"));
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name} is no number: {report}"));
    let expected = [("seed", 7), ("smmus", 8), ("devices", 64), ("domains", 16), ("threads", 4), ("stale_dma", 0)];
    expected.into_iter().for_each(|(name, value)| assert_eq!(number(name), value, "{name}"));
    for name in ["dma_checked", "faults_expected", "invalidations", "syncs", "replayable_rounds", "parallel_rounds"] {
        assert!(number(name) > 0, "{name}");
    }
    assert_eq!(number("faults_expected"), number("faults_seen"));
    assert_eq!(number("invalidations"), number("wait_rounds"), "one wait for each invalidation");
    assert!(report["unmap_ns"]["p50"].as_u64().is_some_and(|ns| ns > 0), "{report}");
    assert_eq!((&report["backend"], &report["scenario"]), (&"model".into(), &"storm".into()));
    assert!(!folder.path().join("storm-history.json").exists());
}

#[test]
fn what_an_smmu_forgets_is_found_made_short_and_found_again() {
    // What is left in a cache may lead to a page that is free, or that is another's.
    let kinds = ["stale_dma".into(), "reached".into()];
    for sabotage in ["IgnoreTlbiByAddress", "IgnoreAtcInv"] {
        let folder = tempfile::tempdir().unwrap();
        let output = storm(&["--seconds", "60", "--sabotage", sabotage], folder.path());
        assert_eq!(output.status.code(), Some(1), "{sabotage}: {output:?}");
        let path = folder.path().join("storm-history.json");
        let mut history = json(&path);
        assert!(kinds.contains(&history["failure"]["kind"]), "{sabotage}: {history}");
        let steps = history["steps"].as_array().unwrap().len();
        assert!((1..=6).contains(&steps), "{sabotage}: {steps} steps are many: {history}");

        let again = storm(&["--replay", "storm-history.json"], folder.path());
        assert_eq!(again.status.code(), Some(1), "{sabotage}: {again:?}");
        let stderr = String::from_utf8(again.stderr).unwrap();
        assert!(stderr.contains("the same failure as in storm-history.json"), "{sabotage}: {stderr}");

        // The driver is not to blame.
        history["machine"]["sabotage"] = Value::Null;
        std::fs::write(&path, history.to_string()).unwrap();
        let healed = storm(&["--replay", "storm-history.json"], folder.path());
        assert!(healed.status.success(), "{sabotage}: {healed:?}");
        assert!(String::from_utf8(healed.stdout).unwrap().contains("does not fail"));
    }
}

#[test]
fn a_storm_that_cannot_be_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("broken.json"), "{}").unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["--laziness", "sloth"], "sloth"),
        (&["--sabotage", "Sand"], "Sand"),
        (&["--smmus", "17"], "smmus = 17"),
        (&["--threads", "0"], "threads = 0"),
        (&["--replay", "nothing.json"], "cannot read nothing.json"),
        (&["--replay", "broken.json"], "broken.json: missing field"),
    ];
    for (arguments, words) in cases {
        let output = storm(arguments, folder.path());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(words), "{stderr:?} should be a line with {words:?}");
    }
}
