//! Which QEMU program to run, and whether it is new enough.

use std::env;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::QemuError;

/// The first version with both translation stages, and nesting, in its SMMUv3.
const OLDEST: Version = Version { major: 9, minor: 2 };
const PROGRAM: &str = "qemu-system-aarch64";
/// Names another program than the one on `PATH`.
const VARIABLE: &str = "SMMUV3_QEMU";
/// How long `--version` may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The 10 of 10.0.2.
    pub major: u32,
    /// The 0 of 10.0.2.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Reads what `--version` prints.
    fn parse(output: &str) -> Option<Version> {
        let numbers = output.split_once("QEMU emulator version ")?.1;
        let mut numbers = numbers.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Version { major: next()?, minor: next()? })
    }
}

/// A QEMU program that is new enough.
#[derive(Clone, Debug)]
pub struct Qemu {
    path: PathBuf,
    version: Version,
}

impl Qemu {
    /// The first version whose SMMUv3 can be put in front of any root bus.
    pub const SEVERAL_SMMUS: Version = Version { major: 10, minor: 2 };

    /// The program that the environment variable `SMMUV3_QEMU` names, else `qemu-system-aarch64` on `PATH`.
    ///
    /// # Errors
    /// [`QemuError::is_missing`] is true of the error if there is none or only an older one. A program named by the
    /// variable that cannot be run is [`QemuError::Unusable`].
    pub fn find() -> Result<Qemu, QemuError> {
        match env::var_os(VARIABLE) {
            Some(path) => Qemu::at(Path::new(&path)),
            None => Qemu::at(Path::new(PROGRAM)).map_err(|error| match error {
                QemuError::Unusable { .. } if !is_on_path(PROGRAM) => QemuError::NotFound,
                other => other,
            }),
        }
    }

    /// The program `path`; a bare name is looked up on `PATH`.
    ///
    /// # Errors
    /// [`QemuError::Unusable`] and [`QemuError::TooOld`].
    pub fn at(path: &Path) -> Result<Qemu, QemuError> {
        let path = path.to_path_buf();
        let unusable = |reason: String| QemuError::Unusable { path: path.clone(), reason };
        let output = version_output(&path).map_err(|error| unusable(error.to_string()))?;
        let version = Version::parse(&output).ok_or_else(|| {
            let line = output.lines().next().unwrap_or("");
            unusable(format!("`--version` prints `{line}`"))
        })?;
        if version < OLDEST {
            return Err(QemuError::TooOld { path, found: version });
        }
        Ok(Qemu { path, version })
    }

    /// A program that there need not be.
    #[cfg(test)]
    pub(crate) fn of_version(version: Version) -> Qemu {
        Qemu { path: PROGRAM.into(), version }
    }

    /// The program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version, at least 9.2.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether a machine of it can have more than one SMMU: [version 10.2 or newer](Self::SEVERAL_SMMUS).
    pub fn has_several_smmus(&self) -> bool {
        self.version >= Qemu::SEVERAL_SMMUS
    }
}

fn is_on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// What `path --version` prints, waiting no longer than [`PATIENCE`].
fn version_output(path: &Path) -> io::Result<String> {
    let mut child = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + PATIENCE;
    // The few lines fit into the pipe. A program that fills it is no QEMU, and runs into the deadline.
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(format!("`--version` did not end within {PATIENCE:?}")));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(0x1000).read_to_end(&mut output)?;
    }
    Ok(String::from_utf8_lossy(&output).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_real_programs_print() {
        let parse = |text| Version::parse(text).map(|v| (v.major, v.minor));
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c)";
        assert_eq!(parse(debian), Some((10, 0)));
        assert_eq!(parse("QEMU emulator version 9.2.0\n"), Some((9, 2)));
        assert_eq!(parse("QEMU emulator version 11.1.50 (v11.1.0-77)"), Some((11, 1)));
        assert_eq!(parse("QEMU emulator version 9"), None);
        assert_eq!(parse("QEMU emulator version x.y"), None);
        assert_eq!(parse("QEMU emulator version 99999999999999999999.1"), None);
        assert_eq!(parse("GNU bash, version 5.2.15"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn older_than_9_2_is_too_old() {
        assert!(Version { major: 7, minor: 2 } < OLDEST);
        assert!(Version { major: 9, minor: 1 } < OLDEST);
        assert!(Version { major: 10, minor: 0 } > OLDEST);
    }

    #[test]
    fn several_smmus_came_with_10_2() {
        let at = |major, minor| Qemu::of_version(Version { major, minor });
        assert!(!at(10, 1).has_several_smmus());
        assert!(at(10, 2).has_several_smmus());
        assert!(at(11, 0).has_several_smmus());
    }

    #[test]
    fn a_program_that_is_no_qemu_is_named_in_the_error() {
        let error = Qemu::at(Path::new("true")).unwrap_err();
        let expected = "cannot use true as QEMU: `--version` prints `";
        assert!(error.to_string().starts_with(expected), "{error}");
        let error = Qemu::at(Path::new("/nonexistent/qemu")).unwrap_err();
        assert!(error.to_string().starts_with("cannot use /nonexistent/qemu as QEMU: "));
        assert!(!error.is_missing());
    }
}
