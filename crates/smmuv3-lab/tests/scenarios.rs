//! Scenario files as a user meets them: all of `scenarios/` run well, those of `scenarios/broken/` go wrong, and what is wrong in a file is
//! told with its line before anything runs.
//!
//! What a file says decides whether it must run on QEMU, too, or be refused there. Without a QEMU that is new enough the runs on it are
//! ignored; with `SMMUV3_REQUIRE_QEMU=1` they fail instead. Those that need two SMMUs are ignored on a QEMU that has one; with
//! `SMMUV3_REQUIRE_TWO_SMMUS=1` they fail instead.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use smmuv3_qemu::Qemu;

type TestResult = Result<(), Failed>;
/// The name of a test, and what it does.
type Test = (&'static str, fn() -> TestResult);

const QEMU: &[&str] = &["--backend", "qemu"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios")
}

/// The scenario files in a folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder of scenarios is there");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let mut files: Vec<_> = paths.filter(|path| path.extension() == Some(OsStr::new("toml"))).collect();
    files.sort();
    files
}

fn lab(file: &Path, more: &[&str]) -> Output {
    lab_with(file, more, None)
}

/// Where a QEMU is given, with that one.
fn lab_with(file: &Path, more: &[&str], qemu: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smmuv3-lab"));
    command.envs(qemu.map(|qemu| ("SMMUV3_QEMU", qemu)));
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
    Ok(serde_json::from_str(&fs::read_to_string(json)?)?)
}

fn number(report: &Value, name: &str) -> Result<u64, Failed> {
    Ok(report[name].as_u64().ok_or_else(|| format!("{name} is no number: {report}"))?)
}

fn runs_well(file: &Path, more: &[&str]) -> TestResult {
    let text = fs::read_to_string(file)?;
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
        let most = if said("cover = \"exact\"") { asked } else { 2 * asked };
        assert!(asked <= done && done <= most, "{asked} ATC pages asked for, {done} invalidated");
    }
    if said("{ kind = \"Ats\", ") && !more.contains(&"qemu") {
        assert!(done > 0, "ATS, and no ATC_INV of a range: {report}");
    }
    if said("S2VmidS1Clear") && said("unmap = ") {
        let count = |name: &str| report["commands"][name].as_u64().unwrap_or(0);
        assert!(count("TLBI_S2_IPA") > 0 && count("TLBI_NH_ALL") > 0, "a guest's stage 1 is not cleared: {report}");
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
    fs::write(&file, text)?;
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

/// A file for QEMU, whose line 2 is `second`, with these steps from line 8 on.
fn for_qemu(second: &str, steps: &str) -> String {
    let head = r#"
device = [{ name = "nic", sids = [0x18] }]
buffer = [{ name = "a" }]
domain = [{ name = "net", kind = "s1", input_bits = 48 }, { name = "vm", kind = "s2", input_bits = 40 }]
vsmmu = [{ name = "guest", parent = "vm", streams = [{ sid = 3, device = "nic" }] }]
"#;
    format!("name = \"test\"\n{second}{head}steps = [\n  {steps}\n]\n")
}

fn what_qemu_does_not_have_is_told_with_its_line() -> TestResult {
    let lacks = |text: &str, line: usize, what: &str| {
        let words = format!("needs {what}");
        refused(text, QEMU, line, &[&words, "which the QEMU backend does not have"])
            .map_err(|error| Failed::from(format!("{text}: {error:?}")))
    };
    lacks(&with_steps(""), 2, "PASIDs")?;
    for (second, what) in [
        ("smmu = [{ name = \"s\", ats = true }]", "an SMMU with ats = true"),
        ("smmu = [{ name = \"s\", stage2 = false }]", "an SMMU with stage2 = false"),
        ("smmu = [{ name = \"s\", sid_bits = 17 }]", "an SMMU with sid_bits = 17"),
        ("smmu = [{ name = \"s\", granules = [\"4k\"] }]", "an SMMU with fewer granules"),
        ("smmu = [{ name = \"s\", sabotage = [\"IgnoreSync\"] }]", "an SMMU with IgnoreSync"),
        ("nested = [{ name = \"n\", vsmmu = \"guest\", ste = \"stage1\", ats = true }]", "ATS"),
        ("nested = [{ name = \"n\", vsmmu = \"guest\", ste = \"stage1\", tables = 0x8000000000 }]", "concatenated"),
    ] {
        lacks(&for_qemu(second, ""), 2, what)?;
    }
    for (step, what) in [
        (r#"{ attach_pasid = "nic", pasid = 1, domain = "net" }"#, "PASIDs"),
        (r#"{ detach_pasid = "nic", pasid = 1 }"#, "PASIDs"),
        (r#"{ dma = "nic", op = "read", iova = 0, pasid = 1, fault = "C_BAD_SUBSTREAMID" }"#, "PASIDs"),
        (r#"{ dma = "nic", op = "read", iova = 0, fault = "ats off" }"#, "ATS"),
        (r#"{ dma = "nic", op = "read", iova = 0, buffer = "a", fault = "silent" }"#, "a device that notices"),
        (r#"{ dma = "nic", op = "write", iova = 0, fault = "silent" }"#, "a device that notices"),
        (r#"{ dma = "nic", op = "write", iova = 0xfffffffff001, buffer = "a" }"#, "DMA to addresses of more than 48"),
        (r#"{ dma = "nic", op = "write", iova = 0xfffffffffff9, fault = "F_TRANSLATION" }"#, "DMA to addresses"),
        (r#"{ map = "vm", iova = 0x8000000000, buffer = "a" }"#, "concatenated stage 2 tables"),
        (r#"{ guest_invalidate = "guest", asid = 1, iova = 0, stream = 3 }"#, "ATS"),
        (r#"{ guest_commands = "guest", raw = [[0x46, 0], [0x40, 0]] }"#, "ATS"),
        (r#"{ guest_commands = "guest", raw = [[0x40, 0]], refused = 0 }"#, "ATS"),
        (r#"{ guest_commands = "guest", raw = [[0x300001005, 1]] }"#, "PASIDs"),
    ] {
        lacks(&for_qemu("", step), 8, what)?;
    }
    let read_only = r#"{ map = "net", iova = 0x1000, buffer = "a", access = "r" },
  { dma = "nic", op = "read", iova = 0x1000, buffer = "a" }"#;
    lacks(&for_qemu("", read_only), 9, "a device that tells what it has read")?;
    let guest = "nested = [{ name = \"n\", vsmmu = \"guest\", ste = \"stage1\", mappings = [{ iova = 0x1000, ipa = 0";
    let read = r#"{ dma = "nic", op = "read", iova = 0x1000, buffer = "a" }"#;
    lacks(&for_qemu(&format!("{guest}, access = \"r\" }}] }}]"), read), 8, "a device that tells what it has read")?;
    let set = format!("{{ set = \"n\", iova = 0x1000, ipa = 0, access = \"r\" }},\n  {read}");
    lacks(&for_qemu(&format!("{guest} }}] }}]"), &set), 9, "a device that tells what it has read")?;
    let thread = for_qemu("", r#"{ run_threads = "race" }"#)
        + "[[threads]]\ngroup = \"race\"\nsteps = [\n  { dma = \"nic\", op = \"write\", iova = 0, fault = \"F_TRANSLATION\" },\n]\n";
    lacks(&thread, 13, "a device that notices a fault")?;
    let other = |lists: &str| format!("name = \"test\"\nsteps = []\n{lists}\n");
    lacks(&other("device = [{ name = \"d\", sids = [1], ats = true }]"), 3, "ATS")?;
    lacks(&other("smmu = [\n{ name = \"a\" },\n{ name = \"b\" },\n{ name = \"c\" }]"), 6, "more than 2 SMMUs")?;
    lacks(&other("domain = [{ name = \"d\", kind = \"s1\", output_bits = 48 }]"), 3, "48 output address bits")?;
    lacks(&other("domain = [{ name = \"d\", kind = \"sva\" }]"), 3, "PASIDs")?;
    let sids = "[0, 1, 2, 3, 4, 5, 6, 7]";
    lacks(
        &other(&format!(
            "device = [{{ name = \"d\", sids = {sids} }},\n{{ name = \"e\", sids = [8, 9, 10, 11, 12, 13, 14, 15] }}]"
        )),
        4,
        "more than 15 StreamIDs",
    )?;
    let two = "smmu = [{ name = \"a\" }, { name = \"b\" }]\n";
    lacks(
        &other(&format!("{two}device = [{{ name = \"d\", smmu = \"b\", sids = {sids} }}]")),
        4,
        "more than 7 StreamIDs",
    )
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

/// What a file says that is not for QEMU: in words of the refusal, and of the line that it names.
fn not_for_qemu(text: &str) -> Result<Option<(&'static str, &'static str)>, Failed> {
    let file: toml::Table = toml::from_str(text)?;
    let smmus = file.get("smmu").and_then(toml::Value::as_array).map_or(&[][..], Vec::as_slice);
    let chosen = |smmu: &toml::Value| smmu.as_table().is_some_and(|keys| keys.len() > 1);
    Ok(if smmus.len() > 2 {
        Some(("more than 2 SMMUs", "name = "))
    } else if smmus.iter().any(chosen) {
        Some(("an SMMU with ", "name = "))
    } else if text.contains("ats = true") {
        Some(("ATS", "ats = true"))
    } else if text.contains("pasid") {
        Some(("PASIDs", "pasid"))
    } else {
        None
    })
}

/// How many SMMUs a file has.
fn smmus(text: &str) -> Result<usize, Failed> {
    let file: toml::Table = toml::from_str(text)?;
    Ok(file.get("smmu").and_then(toml::Value::as_array).map_or(1, Vec::len))
}

/// A program that says that it is a QEMU of this version. Started as anything else it leaves a mark, and fails.
fn fake_qemu(folder: &Path, version: &str) -> io::Result<PathBuf> {
    let path = folder.join(version);
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo QEMU emulator version {version}; exit; fi\n: >\"$0.started\"\nexit 1\n"
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path)
}

fn was_started(fake: &Path) -> bool {
    fake.with_added_extension("started").exists()
}

/// Refused on this QEMU, with one line that has the line number and `words`, and before anything was started.
fn refused_before_start(file: &Path, qemu: &Path, hint: &str, words: &[&str]) -> TestResult {
    let output = lab_with(file, QEMU, Some(qemu));
    let stderr = String::from_utf8(output.stderr)?;
    let place = format!("smmuv3-lab: {}:", file.display());
    let line = stderr.strip_prefix(&place).and_then(|rest| rest.split_once(": ")?.0.parse::<usize>().ok());
    let text = fs::read_to_string(file)?;
    let named = line.and_then(|line| text.lines().nth(line.checked_sub(1)?)).is_some_and(|line| line.contains(hint));
    let fits = named && words.iter().all(|word| stderr.contains(word));
    if output.status.code() != Some(2) || stderr.lines().count() != 1 || !fits {
        return Err(format!("{}: {stderr:?} should be one line {place:?} with {words:?}", output.status).into());
    }
    assert!(!was_started(qemu), "QEMU was started");
    Ok(())
}

fn the_fake_qemu_leaves_a_mark(fake: &Path) -> TestResult {
    let output = lab_with(&folder().join("paging-s1.toml"), QEMU, Some(fake));
    assert_eq!(output.status.code(), Some(2));
    assert!(was_started(fake));
    Ok(())
}

fn the_files_for_qemu_have_all_that_qemu_can_do() -> TestResult {
    let mut all = String::new();
    let mut two_smmus = String::new();
    for file in files(&folder()) {
        let text = fs::read_to_string(file)?;
        if not_for_qemu(&text)?.is_none() {
            let texts = if smmus(&text)? == 2 { &mut two_smmus } else { &mut all };
            texts.push_str(&text);
        }
    }
    let owed = ["\"S1Asid\"", "\"S2Vmid\"", "\"S2VmidS1Clear\""];
    let steps = ["attach_identity = ", "detach = ", "guest_commands = ", "guest_invalidate = ", "run_threads = "];
    let guests = ["ste = \"stage1\"", "ste = \"bypass\"", "ste = \"abort\""];
    for words in owed.iter().chain(&steps).chain(&guests) {
        assert!(all.contains(words), "no file that runs on QEMU has {words}");
    }
    for words in owed.iter().chain(&["remove_smmu = ", "guest_invalidate = "]) {
        assert!(two_smmus.contains(words), "no file with two SMMUs that runs on QEMU has {words}");
    }
    Ok(())
}

/// All that a file may choose, as QEMU has it, and as much of everything as there is.
fn what_qemu_has_is_not_refused() -> TestResult {
    let smmu = "smmu = [{ name = \"s\", stage1 = true, stage2 = true, ats = false, asid16 = true, vmid16 = true, \
                range_inv = true, cd_two_level = false, st_two_level = true, sid_bits = 16, ssid_bits = 0, \
                output_bits = 44, granules = [\"64k\", \"16k\", \"4k\"] }]";
    let steps = r#"{ attach = "nic", domain = "net" },
  { map = "net", iova = 0xfffffffff000, buffer = "a" },
  { dma = "nic", op = "write", iova = 0xfffffffff000, buffer = "a" },
  { unmap = "net", iova = 0xfffffffff000 },
  { dma = "nic", op = "write", iova = 0xfffffffffff8, fault = "F_TRANSLATION" },
  { attach = "nic", domain = "vm" },
  { map = "vm", iova = 0x7ffffff000, buffer = "a" },
  { dma = "nic", op = "read", iova = 0x7ffffff000, buffer = "a" },
  { guest_commands = "guest", raw = [[0x46, 0], [0x20, 0], [0x40, 0]], refused = 1 }"#;
    let fifteen = for_qemu(smmu, steps).replace("[0x18]", "[0x18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("all.toml");
    fs::write(&file, fifteen)?;
    let report = report(&file, QEMU)?;
    assert_eq!((number(&report, "dma_checked")?, number(&report, "faults_seen")?), (2, 1));
    Ok(())
}

fn two_smmus_have_room_for_fifteen_streams() -> TestResult {
    let text = "name = \"fifteen\"\n\
                smmu = [{ name = \"a\" }, { name = \"b\" }]\n\
                device = [\n\
                { name = \"seven\", smmu = \"b\", sids = [1, 2, 3, 4, 5, 6, 7] },\n\
                { name = \"eight\", smmu = \"a\", sids = [1, 2, 3, 4, 5, 6, 7, 8] },\n\
                ]\n\
                buffer = [{ name = \"a\" }]\n\
                steps = [\n\
                { attach_identity = \"seven\" },\n\
                { dma = \"seven\", sid = 7, op = \"write\", buffer = \"a\" },\n\
                { dma = \"eight\", sid = 8, op = \"write\", buffer = \"a\", fault = \"silent\" },\n\
                ]\n";
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("fifteen.toml");
    fs::write(&file, text)?;
    let report = report(&file, QEMU)?;
    assert_eq!((number(&report, "dma_checked")?, number(&report, "faults_seen")?), (1, 1));
    Ok(())
}

fn what_is_wrong_on_the_model_is_wrong_on_qemu() -> TestResult {
    let two = for_qemu("", "").replace("}]\nbuffer", "}, { name = \"disk\", sids = [0x18] }]\nbuffer");
    for backend in [&[][..], QEMU] {
        refused(&two, backend, 3, &["device \"disk\""])?;
        let wrong = |steps: &str, line: usize, words: &[&str]| ends(&for_qemu("", steps), backend, 1, line, words);
        let attached =
            "{ attach = \"nic\", domain = \"net\" },\n  { map = \"net\", iova = 0x1000, buffer = \"a\" },\n  ";
        let unexpected = r#"{ dma = "nic", op = "write", iova = 0x5000, buffer = "a" }"#;
        wrong(&(attached.to_owned() + unexpected), 10, &["step 3, dma \"nic\"", "F_TRANSLATION"])?;
        let missing = r#"{ dma = "nic", op = "read", iova = 0x1000, fault = "F_TRANSLATION" }"#;
        wrong(&(attached.to_owned() + missing), 10, &["step 3", "expected F_TRANSLATION"])?;
        let other = r#"{ dma = "nic", op = "read", iova = 0x2000, fault = "F_PERMISSION" }"#;
        wrong(&(attached.to_owned() + other), 10, &["F_TRANSLATION", "expected F_PERMISSION"])?;
        let not_silent = r#"{ dma = "nic", op = "write", iova = 0x1000, buffer = "a", fault = "silent" }"#;
        wrong(&(attached.to_owned() + not_silent), 10, &["step 3", "expected silent"])?;
    }
    // On the model the device itself tells.
    let nothing_shows = r#"{ dma = "nic", op = "write", iova = 0x1000, buffer = "a", fault = "silent" }"#;
    ends(&for_qemu("", nothing_shows), QEMU, 1, 8, &["step 1", "nothing shows how it ended"])
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let required = |name: &str| env::var_os(name).is_some_and(|value| value == "1");
    let qemu = Qemu::find();
    let missing = match &qemu {
        Err(error) if error.is_missing() && !required("SMMUV3_REQUIRE_QEMU") => {
            eprintln!("smmuv3-lab: left out the scenarios on QEMU: {error}");
            true
        }
        _ => false,
    };
    let one_smmu = match &qemu {
        _ if required("SMMUV3_REQUIRE_TWO_SMMUS") => false,
        Ok(qemu) if !qemu.has_several_smmus() => {
            let (path, version) = (qemu.path().display(), qemu.version());
            eprintln!(
                "smmuv3-lab: left out the scenarios with two SMMUs on QEMU: they need {} or newer, {path} is {version}",
                Qemu::SEVERAL_SMMUS
            );
            true
        }
        _ => missing,
    };
    let tests: [Test; 9] = [
        ("what_is_no_toml_is_told_with_its_line", what_is_no_toml_is_told_with_its_line),
        ("unknown_keys_are_told_with_their_line", unknown_keys_are_told_with_their_line),
        ("wrong_types_and_values_are_told_with_their_line", wrong_types_and_values_are_told_with_their_line),
        ("names_that_do_not_exist_are_told_with_their_line", names_that_do_not_exist_are_told_with_their_line),
        ("setups_that_cannot_be_are_told_with_their_line", setups_that_cannot_be_are_told_with_their_line),
        ("what_qemu_does_not_have_is_told_with_its_line", what_qemu_does_not_have_is_told_with_its_line),
        ("a_missing_file_is_told_in_one_line", a_missing_file_is_told_in_one_line),
        ("what_goes_wrong_is_told_with_its_step", what_goes_wrong_is_told_with_its_step),
        ("the_files_for_qemu_have_all_that_qemu_can_do", the_files_for_qemu_have_all_that_qemu_can_do),
    ];
    let on_qemu: [Test; 2] = [
        ("on_qemu::what_qemu_has_is_not_refused", what_qemu_has_is_not_refused),
        ("on_qemu::what_is_wrong_on_the_model_is_wrong_on_qemu", what_is_wrong_on_the_model_is_wrong_on_qemu),
    ];
    let mut trials: Vec<Trial> = tests.into_iter().map(|(name, test)| Trial::test(name, test)).collect();
    trials.extend(on_qemu.map(|(name, test)| Trial::test(name, test).with_ignored_flag(missing)));
    let room = Trial::test("on_qemu::two_smmus_have_room_for_fifteen_streams", two_smmus_have_room_for_fifteen_streams);
    trials.push(room.with_ignored_flag(one_smmu));
    // All before the first thread: a program that a fork still has open for writing cannot be run.
    let fakes = tempfile::tempdir().expect("a temporary folder can be made");
    let fake = |version: &str| fake_qemu(fakes.path(), version).expect("a script can be written");
    let (old, new, started) = (fake("10.1.0"), fake("99.0"), fake("98.0"));
    trials.push(Trial::test("the_fake_qemu_leaves_a_mark", move || the_fake_qemu_leaves_a_mark(&started)));

    let name = |file: &Path| file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    for file in files(&folder()) {
        let name = name(&file);
        let text = fs::read_to_string(&file).expect("a scenario can be read");
        let (lacks, smmus) = match (not_for_qemu(&text), smmus(&text)) {
            (Ok(lacks), Ok(smmus)) => (lacks, smmus),
            (Err(error), _) | (_, Err(error)) => panic!("{name}: {error:?}"),
        };
        let model = file.clone();
        trials.push(Trial::test(format!("on_the_model::{name}"), move || runs_well(&model, &[])));
        if let Some((what, hint)) = lacks {
            let (new, needs) = (new.clone(), format!("needs {what}"));
            trials.push(Trial::test(format!("refused_on_qemu::{name}"), move || {
                refused_before_start(&file, &new, hint, &[&needs, "which the QEMU backend does not have"])
            }));
            continue;
        }
        if smmus == 2 {
            let (file, old) = (file.clone(), old.clone());
            trials.push(Trial::test(format!("refused_on_old_qemu::{name}"), move || {
                let words = ["needs two SMMUs, which QEMU has from version 10.2 on", "is QEMU 10.1"];
                refused_before_start(&file, &old, "name = ", &words)
            }));
        }
        let left_out = if smmus == 2 { one_smmu } else { missing };
        let run = move || runs_well(&file, QEMU);
        trials.push(Trial::test(format!("on_qemu::{name}"), run).with_ignored_flag(left_out));
    }
    for file in files(&folder().join("broken")) {
        let (name, sabotaged, new) = (name(&file), file.clone(), new.clone());
        trials.push(Trial::test(format!("broken::{name}"), move || goes_wrong(&file)));
        trials.push(Trial::test(format!("refused_on_qemu::broken::{name}"), move || {
            refused_before_start(&sabotaged, &new, "sabotage", &["needs an SMMU with Ignore"])
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
