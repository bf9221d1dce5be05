//! What the image says of itself, and what it has to say.

use std::collections::HashMap;
use std::fmt;

/// CPUs that the machine has.
const CPUS: u64 = 4;
/// Bytes that must come from each disk and be what they should be.
const LEAST_BYTES: u64 = 64 << 20;
/// Of these, the bytes that each CPU must have checked.
const LEAST_CPU_BYTES: u64 = 1 << 20;
/// Unmaps that the SMMUs must have invalidated for.
const LEAST_INVALIDATIONS: u64 = 10_000;

/// The numbers of the line `result:`.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    nvme_bytes: u64,
    blk_bytes: u64,
    least_cpu_bytes: u64,
    echoes: u64,
    invalidations: u64,
    faults: u64,
    errors: u64,
}

/// Why a run is a failure.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The image ended without a verdict.
    #[error("the image ended without a verdict")]
    NoVerdict,
    /// The image's own verdict.
    #[error("the image's verdict is `{0}`")]
    Verdict(String),
    /// Something is missing in its result.
    #[error("the image does not tell its {0}")]
    Missing(&'static str),
    /// A number is not what it should be.
    #[error("{name} = {value}, where it should be {wanted}")]
    Number {
        /// What was counted.
        name: &'static str,
        /// The number.
        value: u64,
        /// What it should be.
        wanted: String,
    },
}

impl Report {
    /// Reads the console of an image on a machine with `smmus` SMMUs that starts it at EL`el`.
    pub fn read(console: &[String], el: u8, smmus: u8) -> Result<Report, Failure> {
        let last = console.iter().rev().find(|line| !line.trim().is_empty()).ok_or(Failure::NoVerdict)?;
        match last.trim().strip_prefix("verdict: ") {
            Some("pass") => {}
            Some(other) => return Err(Failure::Verdict(other.to_owned())),
            None => return Err(Failure::NoVerdict),
        }
        let result = console.iter().find_map(|line| Some(line.split_once("result: ")?.1)).unwrap_or_default();
        let numbers: HashMap<&str, u64> =
            result.split_whitespace().filter_map(|word| word.split_once('=')).filter_map(number).collect();
        let number = |name| numbers.get(name).copied().ok_or(Failure::Missing(name));
        let exactly = |name, wanted: u64| match number(name)? {
            value if value == wanted => Ok(value),
            value => Err(Failure::Number { name, value, wanted: wanted.to_string() }),
        };
        let at_least = |name, wanted: u64| match number(name)? {
            value if value >= wanted => Ok(value),
            value => Err(Failure::Number { name, value, wanted: format!("{wanted} at least") }),
        };
        exactly("el", el.into())?;
        exactly("cpus", CPUS)?;
        exactly("smmus", smmus.into())?;
        exactly("unexpected", 0)?;
        Ok(Report {
            nvme_bytes: at_least("nvme_bytes", LEAST_BYTES)?,
            blk_bytes: at_least("blk_bytes", LEAST_BYTES)?,
            least_cpu_bytes: at_least("least_cpu_bytes", LEAST_CPU_BYTES)?,
            echoes: at_least("echoes", 1)?,
            invalidations: at_least("invalidations", LEAST_INVALIDATIONS)?,
            faults: at_least("faults", 1)?,
            errors: at_least("errors", 1)?,
        })
    }
}

fn number<'a>((name, value): (&'a str, &str)) -> Option<(&'a str, u64)> {
    Some((name, value.parse().ok()?))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes| bytes >> 20;
        write!(
            f,
            "{} MiB verified on NVMe and {} MiB on virtio-blk, {} MiB at least by each CPU, {} echoes by virtio-net, {} unmaps with invalidation; \
             taken by interrupt, from each SMMU at least: {} expected faults, {} expected global errors; and no other",
            mib(self.nvme_bytes),
            mib(self.blk_bytes),
            mib(self.least_cpu_bytes),
            self.echoes,
            self.invalidations,
            self.faults,
            self.errors,
        )
    }
}

/// Something that the image does wrong when it is told to, to show that it is noticed.
pub struct Sabotage {
    /// By what name the image knows it.
    pub name: &'static str,
    /// What the image says of it.
    complaint: &'static str,
}

/// All of them.
pub const SABOTAGES: [Sabotage; 5] = [
    Sabotage { name: "unmapped", complaint: "F_TRANSLATION: StreamID 0x8, read" },
    Sabotage { name: "wrong-stream", complaint: "C_BAD_STE: StreamID 0x8" },
    Sabotage { name: "still-mapped", complaint: "a device reached a page that was unmapped" },
    Sabotage { name: "deaf-to-events", complaint: "no fault came" },
    Sabotage { name: "deaf-to-errors", complaint: "no global error came" },
];

/// Why a sabotage counts as not noticed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNoticed {
    /// The report is good.
    #[error("sabotage {0} was not noticed: the report is good")]
    Passed(&'static str),
    /// The image complains of something else, or ends without a verdict.
    #[error("with sabotage {name} the image should say `{complaint}`, then that it fails; but {failure}")]
    Otherwise {
        /// The sabotage.
        name: &'static str,
        /// What was to be said.
        complaint: &'static str,
        /// What is wrong with the report.
        failure: Failure,
    },
}

impl Sabotage {
    /// Checks what came of it: `report` is what [`Report::read`] makes of `console`.
    pub fn check(&self, console: &[String], report: Result<Report, Failure>) -> Result<(), NotNoticed> {
        let &Sabotage { name, complaint } = self;
        match report {
            Ok(_) => Err(NotNoticed::Passed(name)),
            Err(Failure::Verdict(_)) if console.iter().any(|line| line.contains(complaint)) => Ok(()),
            Err(failure) => Err(NotNoticed::Otherwise { name, complaint, failure }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[1.234] cpu0: result: el=1 cpus=4 smmus=1 nvme_bytes=67108864 blk_bytes=67108864 least_cpu_bytes=1048576 echoes=1 \
                        invalidations=10000 faults=1 errors=1 unexpected=0\nverdict: pass\n";

    fn read(console: &str) -> Result<Report, Failure> {
        let console: Vec<String> = console.lines().map(str::to_owned).collect();
        Report::read(&console, 1, 1)
    }

    #[test]
    fn a_report_at_the_limits_is_good() {
        let report = read(GOOD).unwrap();
        assert_eq!((report.nvme_bytes, report.invalidations), (64 << 20, 10_000));
    }

    #[test]
    fn each_number_has_its_limit() {
        for (name, good, bad) in [
            ("el", "1", "2"),
            ("cpus", "4", "3"),
            ("smmus", "1", "2"),
            ("nvme_bytes", "67108864", "67108863"),
            ("blk_bytes", "67108864", "67108863"),
            ("least_cpu_bytes", "1048576", "1048575"),
            ("echoes", "1", "0"),
            ("invalidations", "10000", "9999"),
            ("faults", "1", "0"),
            ("errors", "1", "0"),
            ("unexpected", "0", "1"),
        ] {
            let (good, bad) = (format!("{name}={good}"), format!("{name}={bad}"));
            assert_eq!(GOOD.matches(&good).count(), 1);
            let error = read(&GOOD.replace(&good, &bad)).unwrap_err();
            assert!(matches!(error, Failure::Number { name: other, .. } if other == name), "{bad}: {error}");
            assert_eq!(read(&GOOD.replace(&good, "")), Err(Failure::Missing(name)));
        }
    }

    #[test]
    fn a_sabotage_is_noticed_if_the_image_fails_for_that_reason() {
        let sabotage = Sabotage { name: "x", complaint: "no fault came" };
        let check = |text: &str| sabotage.check(&[text.to_owned()], read(text));
        assert_eq!(check("panicked: no fault came\nverdict: fail\n"), Ok(()));
        assert_eq!(check(GOOD), Err(NotNoticed::Passed("x")));
        assert_eq!(check(&format!("no fault came\n{GOOD}")), Err(NotNoticed::Passed("x")));
        for other in ["panicked: no memory\nverdict: fail\n", "panicked: no fault came\n"] {
            assert!(matches!(check(other), Err(NotNoticed::Otherwise { .. })), "{other}");
        }
    }

    #[test]
    fn only_a_last_line_that_says_so_is_a_pass() {
        assert_eq!(read(""), Err(Failure::NoVerdict));
        assert_eq!(read(&GOOD.replace("verdict: pass", "")), Err(Failure::NoVerdict));
        assert_eq!(read(&GOOD.replace("pass", "fail")), Err(Failure::Verdict("fail".into())));
        assert_eq!(read(&format!("{GOOD}and then?")), Err(Failure::NoVerdict));
    }
}
