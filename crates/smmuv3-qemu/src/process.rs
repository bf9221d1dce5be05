//! The running QEMU: its end, and its last words.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::QemuError;

/// How much of QEMU's standard error an error repeats, in bytes.
const LAST_WORDS: u64 = 2000;

/// A QEMU process. It is killed and reaped on drop, and killed if this process dies without dropping it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    stderr: File,
    watchdog: Option<Watchdog>,
}

impl Process {
    /// Runs `command`, with its standard error going to `stderr`, an empty file.
    pub(crate) fn spawn(command: &mut Command, stderr: File) -> Result<Process, QemuError> {
        let what = format!("start {}", command.get_program().display());
        let output = stderr.try_clone().map_err(QemuError::io("share the file for QEMU's messages"))?;
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn().map_err(QemuError::io(what))?;
        let watchdog = Watchdog::over(&child);
        Ok(Process { child, stderr, watchdog })
    }

    /// Its process number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The error that tells of QEMU's end, if it came within `patience`.
    pub(crate) fn ended(&mut self, patience: Duration) -> Option<QemuError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().ok().flatten() {
                // The process number is free for others from now on.
                self.watchdog = None;
                return Some(self.last_words(status));
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn last_words(&self, status: ExitStatus) -> QemuError {
        let len = self.stderr.metadata().map_or(0, |meta| meta.len());
        let mut text = vec![0; len.min(LAST_WORDS) as usize];
        let start = len - text.len() as u64;
        let stderr = match self.stderr.read_exact_at(&mut text, start) {
            Ok(()) if text.is_empty() => "nothing".into(),
            Ok(()) => {
                let text = String::from_utf8_lossy(&text);
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                lines.collect::<Vec<_>>().join("; ")
            }
            Err(error) => format!("(cannot be read: {error})"),
        };
        QemuError::Exited { status, stderr }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Before QEMU is reaped: afterwards its process number may belong to somebody else.
        self.watchdog = None;
        // Both fail only if it is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A shell that waits until its standard input closes, which happens when this process dies, and then kills QEMU.
///
/// Linux could kill a child with its parent (`PR_SET_PDEATHSIG`), but does so when the parent's *thread* ends.
#[derive(Debug)]
struct Watchdog(Child);

impl Watchdog {
    /// `None` if there is no shell; QEMU then outlives a parent that is killed.
    fn over(child: &Child) -> Option<Watchdog> {
        Command::new("sh")
            .args(["-c", "read _; kill -9 \"$1\"", "sh"])
            .arg(child.id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()
            .map(Watchdog)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.kill().ok();
        // This closes its standard input, too late for the shell to notice.
        self.0.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let stderr = tempfile::tempfile().unwrap();
        Process::spawn(Command::new("sh").args(["-c", script]), stderr).unwrap()
    }

    #[test]
    fn the_end_of_the_process_is_told_with_its_last_words_on_one_line() {
        let mut process = shell("echo one >&2; echo; echo ' two ' >&2; exit 3");
        let error = process.ended(Duration::from_secs(10)).unwrap();
        assert_eq!(error.to_string(), "QEMU ended (exit status: 3) and said: one; two");
        // It can be asked for again.
        assert!(process.ended(Duration::ZERO).is_some());
        let error = shell("exit 0").ended(Duration::from_secs(10)).unwrap();
        assert_eq!(error.to_string(), "QEMU ended (exit status: 0) and said: nothing");
    }

    #[test]
    fn a_running_process_has_not_ended_and_is_killed_on_drop() {
        let start = Instant::now();
        let mut process = shell("exec sleep 1000");
        assert!(process.ended(Duration::from_millis(20)).is_none());
        drop(process);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_watchdog_kills_when_its_input_closes() {
        let mut process = shell("exec sleep 1000");
        // What happens to the pipe when this process is killed.
        drop(process.watchdog.as_mut().unwrap().0.stdin.take());
        let error = process.ended(Duration::from_secs(10)).unwrap();
        assert_eq!(error.to_string(), "QEMU ended (signal: 9 (SIGKILL)) and said: nothing");
    }
}
