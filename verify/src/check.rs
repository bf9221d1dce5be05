//! One check: a model, a test or a storm, in a tree that may have been changed.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

/// Which check. One of the first four is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Models for loom whose name contains this.
    pub loom: Option<String>,
    /// Unit tests of the driver whose name contains this.
    pub unit: Option<String>,
    /// Tests of the driver on the model: the file, and behind a space the beginning of a name.
    pub test: Option<String>,
    /// A storm with these arguments, which finds stale DMA.
    pub storm: Option<String>,
    /// Takes long.
    #[serde(default)]
    pub slow: bool,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It found nothing.
    Passed,
    /// It found something.
    Failed,
    /// The tree does not build: nothing is known.
    DoesNotBuild,
}

/// What a check said.
pub struct Run {
    pub verdict: Verdict,
    pub output: String,
}

/// What a command said on both streams.
pub struct Output {
    pub ok: bool,
    pub text: String,
}

/// Runs a command to its end.
pub fn output(command: &mut Command) -> Result<Output, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok(Output { ok: output.status.success(), text })
}

impl Check {
    /// Builds and runs the check in `tree`; what is built lies in the `target` of `root`.
    pub fn run(&self, tree: &Path, root: &Path) -> Result<Run, String> {
        let built = output(&mut self.command(tree, root, true)?)?;
        if !built.ok {
            return Ok(Run { verdict: Verdict::DoesNotBuild, output: built.text });
        }
        let run = output(&mut self.command(tree, root, false)?)?;
        // Of a storm, what is wanted is stale DMA, and nothing less.
        let found = match self.storm {
            Some(_) => !run.ok && run.text.lines().any(|line| line.contains("stale DMA") && !line.contains(" 0 ")),
            None => !run.ok,
        };
        let verdict = if found { Verdict::Failed } else { Verdict::Passed };
        if run.ok && self.storm.is_none() && !run.text.lines().any(|line| line.ends_with("... ok")) {
            return Err(format!("{self}: there is no such test"));
        }
        Ok(Run { verdict, output: run.text })
    }

    fn command(&self, tree: &Path, root: &Path, build_only: bool) -> Result<Command, String> {
        let mut command = Command::new("cargo");
        command
            .current_dir(tree)
            .env("RUST_BACKTRACE", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_TERM_COLOR", "never");
        // Each way of building has its own directory, so that none throws the other's work away.
        let target = |name: &str| root.join("target").join(name);
        let mut tests = |args: &[&str], dir: &str, filter: &str| {
            command.args(["test", "--quiet", "--package", "smmuv3"]).args(args).arg("--target-dir").arg(target(dir));
            if build_only {
                command.arg("--no-run");
            } else {
                command.args(["--", "--nocapture", "--format", "pretty"]).args(filter.split_whitespace());
            }
        };
        match (&self.loom, &self.unit, &self.test, &self.storm) {
            (Some(name), None, None, None) => {
                tests(&["--lib"], "verify-loom", &format!("loom_tests::{name}"));
                command.env("RUSTFLAGS", "--cfg loom");
            }
            (None, Some(name), None, None) => tests(&["--lib"], "verify", name),
            (None, None, Some(test), None) => {
                let (file, name) = test.split_once(' ').unwrap_or((test, ""));
                tests(&["--test", file], "verify", name);
            }
            (None, None, None, Some(args)) => {
                command.arg(if build_only { "build" } else { "run" });
                command.args(["--quiet", "--release", "--package", "smmuv3-lab", "--target-dir"]).arg(target("verify"));
                if !build_only {
                    command.args(["--", "storm"]).args(args.split_whitespace());
                }
            }
            _ => return Err(format!("a check is exactly one of loom, unit, test and storm: {self:?}")),
        }
        Ok(command)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [("loom", &self.loom), ("unit test", &self.unit), ("test", &self.test), ("storm", &self.storm)];
        for (kind, name) in kinds {
            if let Some(name) = name {
                write!(f, "{kind} `{name}`")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::DoesNotBuild => "does not build",
        })
    }
}
