//! Scenario files as a user meets them: all of `scenarios/` run well, those of `scenarios/broken/` go wrong, and what is wrong in a file is
//! told with its line before anything runs.
//!
//! Without a QEMU that is new enough the runs on it are ignored; with `SMMUV3_REQUIRE_QEMU=1` they fail instead.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

type TestResult = Result<(), Failed>;
/// The name of a test, and what it does.
type Test = (&'static str, fn() -> TestResult);

/// Scenarios that run on QEMU, too.
const ON_QEMU: [&str; 2] = ["paging-s1.toml", "paging-s2.toml"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios")
}

/// The scenario files in a folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder of scenarios is there");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let mut files: Vec<_> = paths.filter(|path| path.extension() == Some(OsStr::new("toml"))).collect();
    files.sort();
    files
}

fn lab(file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smmuv3-lab"));
    command.arg("run").arg(file).args(more).output().expect("the lab starts")
}

/// Runs a scenario that must go well, and gives its report.
fn report(file: &Path, more: &[&str]) -> Result<Value, Failed> {
    let folder = tempfile::tempdir()?;
    let json = folder.path().join("report.json");
    let json_argument = json.to_string_lossy();
    let output = lab(file, &[more, &["--json", &json_argument]].concat());
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_str(&std::fs::read_to_string(json)?)?)
}

fn number(report: &Value, name: &str) -> Result<u64, Failed> {
    Ok(report[name].as_u64().ok_or_else(|| format!("{name} is no number: {report}"))?)
}

fn runs_well(file: &Path, more: &[&str]) -> TestResult {
    let text = std::fs::read_to_string(file)?;
    let said = |words: &str| text.contains(words);
    let report = report(file, more)?;
    assert!(said(&format!("name = {}\n", report["scenario"])), "{report}");
    assert_eq!((number(&report, "stale_dma")?, &report["surprises"]), (0, &Value::Array(Vec::new())));
    assert_eq!(number(&report, "faults_expected")?, number(&report, "faults_seen")?);
    assert!(number(&report, "dma_checked")? + number(&report, "faults_seen")? > 0 || said("[[threads]]"));
    assert_eq!(number(&report, "invalidations")?, number(&report, "wait_rounds")?, "one wait for each invalidation");
    assert!(number(&report, "smmus")? >= 1 && number(&report, "devices")? >= 1);
    assert!(number(&report, "syncs")? > 0);
    // A range needs less than twice its pages; here all ranges are aligned or short, but for the guest's.
    let (asked, done) = (number(&report, "atc_pages_requested")?, number(&report, "atc_pages_invalidated")?);
    if !said("[[threads]]") {
        assert!(asked <= done && done <= 2 * asked, "{asked} ATC pages asked for, {done} invalidated");
    }
    if said("{ kind = \"Ats\", ") && !more.contains(&"qemu") {
        assert!(done > 0, "ATS, and no ATC_INV of a range: {report}");
    }
    // A comment says what it shows.
    assert!(text.starts_with("# "), "{} begins without a comment", file.display());
    Ok(())
}

fn goes_wrong(file: &Path) -> TestResult {
    let output = lab(file, &[]);
    let stderr = String::from_utf8(output.stderr)?;
    let named = stderr.contains(&format!("{}:", file.display())) && stderr.contains(": step ");
    if output.status.code() != Some(1) || stderr.lines().count() != 1 || !named || !stderr.contains("stale access") {
        return Err(format!("{}: {stderr:?} should be one line that names the step", output.status).into());
    }
    Ok(())
}

/// A file that is refused with exit code 2 and one line that has the line number, and `words`.
fn refused(text: &str, more: &[&str], line: usize, words: &[&str]) -> TestResult {
    ends(text, more, 2, line, words)
}

fn ends(text: &str, more: &[&str], code: i32, line: usize, words: &[&str]) -> TestResult {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, text)?;
    let output = lab(&file, more);
    let stderr = String::from_utf8(output.stderr)?;
    let place = format!("smmuv3-lab: {}:{line}: ", file.display());
    let fits = stderr.starts_with(&place) && words.iter().all(|word| stderr.contains(word));
    if output.status.code() != Some(code) || stderr.lines().count() != 1 || !fits {
        return Err(format!("{}: {stderr:?} should be one line {place:?} with {words:?}", output.status).into());
    }
    Ok(())
}

/// A file with a device, two domains and a buffer, and these steps from line 8 on.
fn with_steps(steps: &str) -> String {
    let head = r#"name = "test"
device = [{ name = "nic", sids = [0x18], pasid_bits = 4 }]
buffer = [{ name = "a" }]
domain = [
  { name = "net", kind = "s1" },
  { name = "vm", kind = "s2" }, { name = "process", kind = "sva" },
]
"#;
    format!("{head}steps = [\n  {steps}\n]\n")
}

/// A step is refused, in the line where it stands.
fn step_refused(step: &str, words: &[&str]) -> TestResult {
    refused(&with_steps(step), &[], 9, words).map_err(|error| format!("{step}: {error:?}").into())
}

fn what_is_no_toml_is_told_with_its_line() -> TestResult {
    refused("name = \"x\"\nsteps = [\n\n", &[], 2, &["unclosed array"])?;
    refused("name = \"x\n", &[], 1, &["string"])?;
    refused("name = 3\nsteps = []\n", &[], 1, &["integer `3`", "expected a string"])?;
    refused("name = \"x\"\n", &[], 1, &["missing field `steps`"])
}

fn unknown_keys_are_told_with_their_line() -> TestResult {
    refused("name = \"x\"\nsteps = []\ncolour = 1\n", &[], 3, &["`colour`", "expected one of `name`"])?;
    let device = "name = \"x\"\nsteps = []\n\n[[device]]\nname = \"d\"\nsids = [1]\nspeed = 9\n";
    refused(device, &[], 7, &["`speed`", "`pasid_bits`"])?;
    step_refused(r#"{ attach = "nic", domian = "net" }"#, &["`domian`", "expected `domain`"])?;
    step_refused(r#"{ fly = "nic" }"#, &["`fly`", "expected its verb: one of map, unmap"])?;
    step_refused(r#"{ domain = "net", attach = "nic" }"#, &["begins with `domain`"])?;
    step_refused("{}", &["empty step"])?;
    step_refused(r#"{ show = "net", pages = 1 }"#, &["`pages`"])
}

fn wrong_types_and_values_are_told_with_their_line() -> TestResult {
    step_refused(r#"{ map = "net", iova = "0x1000", buffer = "a" }"#, &["string \"0x1000\"", "expected u64"])?;
    step_refused(r#"{ map = "net", iova = -1, buffer = "a" }"#, &["`-1`"])?;
    step_refused(r#"{ attach = "nic" }"#, &["missing field `domain`"])?;
    step_refused(r#"{ dma = "nic", op = "swim", iova = 1 }"#, &["`swim`", "expected `read` or `write`"])?;
    step_refused(r#"{ unmap = "net", iova = 0, pages = 0x1000000000000000 }"#, &["expected 1 to"])?;
    step_refused(r#"{ set = "process", iova = 0x8000000000, buffer = "a" }"#, &["39 input bits"])?;
    step_refused(r#"{ set = "process", iova = 0x8001, buffer = "a" }"#, &["0x8001", "multiple of 0x1000"])?;
    let domain = "name = \"x\"\nsteps = []\n[[domain]]\nname = \"d\"\nkind = \"s3\"\n";
    refused(domain, &[], 5, &["`s3`", "`s1`, `s2`, `sva`"])?;
    let bits = "name = \"x\"\nsteps = []\n[[domain]]\nname = \"d\"\nkind = \"s2\"\noutput_bits = 41\n";
    refused(bits, &[], 6, &["41 bits", "expected one of 32, 36"])
}

fn names_that_do_not_exist_are_told_with_their_line() -> TestResult {
    step_refused(
        r#"{ attach = "nic", domain = "nett" }"#,
        &["no domain \"nett\"", "expected one of: net, process, vm"],
    )?;
    step_refused(r#"{ attach = "nik", domain = "net" }"#, &["no device \"nik\"", "nic"])?;
    step_refused(r#"{ map = "net", iova = 0, buffer = "b" }"#, &["no buffer \"b\""])?;
    step_refused(r#"{ run_threads = "race" }"#, &["no group of threads \"race\"", "none at all"])?;
    step_refused(r#"{ remove_smmu = "north" }"#, &["no SMMU \"north\"", "smmu"])?;
    step_refused(r#"{ guest_invalidate = "g", asid = 1, iova = 0 }"#, &["no vSMMU \"g\""])?;
    step_refused(r#"{ dma = "nic", op = "read", iova = 0, fault = "F_WRONG" }"#, &["F_WRONG", "silent"])?;
    step_refused(r#"{ dma = "nic", op = "read", iova = 0, sid = 9, buffer = "a" }"#, &["StreamID 0x9", "24"])?;
    refused(
        "name = \"x\"\nsteps = []\ndevice = [\n  { name = \"d\", sids = [1] },\n  { name = \"d\", sids = [2] },\n]\n",
        &[],
        5,
        &["second device \"d\""],
    )?;
    refused(
        "name = \"x\"\nsteps = []\n\n[[device]]\nname = \"d\"\nsmmu = \"s\"\nsids = [1]\n",
        &[],
        6,
        &["no SMMU \"s\""],
    )
}

fn setups_that_cannot_be_are_told_with_their_line() -> TestResult {
    step_refused(r#"{ attach_pasid = "nic", pasid = 1, domain = "vm" }"#, &["of kind s2", "expected s1, sva"])?;
    step_refused(r#"{ attach = "nic", domain = "process" }"#, &["of kind sva", "expected s1, s2, nested"])?;
    step_refused(r#"{ dma = "nic", op = "read", iova = 0 }"#, &["without a buffer"])?;
    step_refused(r#"{ dma = "nic", op = "read", ats = true, iova = 0, buffer = "a" }"#, &["no ATS"])?;
    let smmu = |what: &str| format!("name = \"x\"\nsmmu = [{{ name = \"s\", {what} }}]\nsteps = []\n");
    refused(&smmu("stage1 = false, stage2 = false"), &[], 2, &["\"s\"", "IDR0.S1P"])?;
    refused(&smmu("sid_bits = 33"), &[], 2, &["33", "at most 32"])?;
    let pasids = smmu("ssid_bits = 2") + "\n[[device]]\nname = \"gpu\"\nsids = [1]\npasid_bits = 8\n";
    refused(&pasids, &[], 6, &["device \"gpu\"", "2 SubstreamID bits", "needs 8"])?;
    let beyond = smmu("sid_bits = 6") + "device = [{ name = \"d\", sids = [0x40] }]\n";
    refused(&beyond, &[], 4, &["StreamID 0x40"])?;
    let wide = "name = \"x\"\nsteps = []\ndomain = [{ name = \"d\", kind = \"sva\", input_bits = 50 }]\n";
    refused(wide, &[], 3, &["50 input address bits"])?;
    let no_stage1 = with_steps(r#"{ attach = "nic", domain = "net" }"#) + "smmu = [{ name = \"s\", stage1 = false }]\n";
    refused(&no_stage1, &[], 9, &["SMMU \"s\" has no stage 1"])?;
    let parent = "name = \"x\"\nsteps = []\ndomain = [{ name = \"d\", kind = \"s1\" }]\nvsmmu = [{ name = \"v\", parent = \"d\" }]\n";
    refused(parent, &[], 4, &["of kind s1", "expected s2"])?;
    let idle = with_steps("") + "[[threads]]\ngroup = \"race\"\nsteps = []\n";
    refused(&idle, &[], 12, &["nothing starts \"race\""])?;
    let shown = with_steps(r#"{ run_threads = "race" }"#)
        + "[[threads]]\ngroup = \"race\"\nsteps = [\n  { show = \"net\" },\n]\n";
    refused(&shown, &[], 14, &["show in a thread"])
}

fn what_qemu_does_not_have_is_told_with_its_line() -> TestResult {
    let qemu: &[&str] = &["--backend", "qemu"];
    let lacks = "which the QEMU backend does not have";
    refused(&with_steps(""), qemu, 2, &["scenario \"test\" needs PASIDs", lacks])?;
    let ats = "name = \"x\"\nsteps = []\ndevice = [{ name = \"d\", sids = [1], ats = true }]\n";
    refused(ats, qemu, 3, &["scenario \"x\" needs ATS", lacks])?;
    let two = "name = \"x\"\nsteps = []\nsmmu = [\n  { name = \"a\" },\n  { name = \"b\" },\n]\n";
    refused(two, qemu, 5, &["more than one SMMU", lacks])
}

fn a_missing_file_is_told_in_one_line() -> TestResult {
    let output = lab(Path::new("/nonexistent/scenario.toml"), &[]);
    let stderr = String::from_utf8(output.stderr)?;
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.contains("/nonexistent/scenario.toml"), "{stderr}");
    Ok(())
}

/// Exit code 1, and the step that went wrong.
fn what_goes_wrong_is_told_with_its_step() -> TestResult {
    let wrong = |steps: &str, line: usize, words: &[&str]| ends(&with_steps(steps), &[], 1, line, words);
    let attached = "{ attach = \"nic\", domain = \"net\" },\n  { map = \"net\", iova = 0x1000, buffer = \"a\" },\n  ";
    wrong(
        r#"{ dma = "nic", op = "read", iova = 0x1000, buffer = "a" }"#,
        9,
        &["step 1, dma \"nic\"", "it was refused", "expected to work"],
    )?;
    let unexpected = r#"{ dma = "nic", op = "read", iova = 0x5000, buffer = "a" }"#;
    wrong(&(attached.to_owned() + unexpected), 11, &["step 3, dma \"nic\"", "F_TRANSLATION"])?;
    let missing = r#"{ dma = "nic", op = "read", iova = 0x1000, fault = "F_TRANSLATION" }"#;
    wrong(&(attached.to_owned() + missing), 11, &["step 3", "it worked, expected F_TRANSLATION"])?;
    let other = r#"{ dma = "nic", op = "read", iova = 0x2000, fault = "F_PERMISSION" }"#;
    wrong(&(attached.to_owned() + other), 11, &["F_TRANSLATION", "expected F_PERMISSION"])?;
    let owed = r#"{ expect_owed = "net", entries = [{ kind = "S2Vmid" }] }"#;
    wrong(&(attached.to_owned() + owed), 11, &["it owes [SMMU 0 S1Asid 0x1 ×1]", "expected 1 entries"])?;
    let users = r#"{ expect_owed = "net", entries = [{ kind = "S1Asid", users = 2 }] }"#;
    wrong(&(attached.to_owned() + users), 11, &["step 3, expect_owed \"net\""])?;
    wrong(r#"{ unmap = "net", iova = 0x1000 }"#, 9, &["no buffer is mapped at 0x1000"])?;
    wrong(r#"{ attach_pasid = "nic", pasid = 99, domain = "net" }"#, 9, &["PASID 0x63"])?;
    wrong(r#"{ remove_smmu = "smmu" }"#, 9, &["step 1, remove_smmu \"smmu\""])?;
    let thread = with_steps(r#"{ run_threads = "race" }"#)
        + "[[threads]]\ngroup = \"race\"\nsteps = [\n  { unmap = \"net\", iova = 0 },\n]\n";
    ends(&thread, &[], 1, 9, &["run_threads \"race\"", "line 14, round 1, unmap \"net\""])
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let required = env::var_os("SMMUV3_REQUIRE_QEMU").is_some_and(|value| value == "1");
    let left_out = match smmuv3_qemu::Qemu::find() {
        Err(error) if error.is_missing() && !required => {
            eprintln!("smmuv3-lab: left out the scenarios on QEMU: {error}");
            true
        }
        _ => false,
    };
    let tests: [Test; 8] = [
        ("what_is_no_toml_is_told_with_its_line", what_is_no_toml_is_told_with_its_line),
        ("unknown_keys_are_told_with_their_line", unknown_keys_are_told_with_their_line),
        ("wrong_types_and_values_are_told_with_their_line", wrong_types_and_values_are_told_with_their_line),
        ("names_that_do_not_exist_are_told_with_their_line", names_that_do_not_exist_are_told_with_their_line),
        ("setups_that_cannot_be_are_told_with_their_line", setups_that_cannot_be_are_told_with_their_line),
        ("what_qemu_does_not_have_is_told_with_its_line", what_qemu_does_not_have_is_told_with_its_line),
        ("a_missing_file_is_told_in_one_line", a_missing_file_is_told_in_one_line),
        ("what_goes_wrong_is_told_with_its_step", what_goes_wrong_is_told_with_its_step),
    ];
    let mut trials: Vec<Trial> = tests.into_iter().map(|(name, test)| Trial::test(name, test)).collect();
    let name = |file: &Path| file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    for file in files(&folder()) {
        trials.push(Trial::test(format!("on_the_model::{}", name(&file)), move || runs_well(&file, &[])));
    }
    for file in files(&folder().join("broken")) {
        trials.push(Trial::test(format!("broken::{}", name(&file)), move || goes_wrong(&file)));
    }
    for scenario in ON_QEMU {
        let run = move || runs_well(&folder().join(scenario), &["--backend", "qemu"]);
        trials.push(Trial::test(format!("on_qemu::{scenario}"), run).with_ignored_flag(left_out));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
