//! The machine that the image runs on.

use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use smmuv3_qemu::Qemu;
use tempfile::TempDir;

use crate::pattern;
use crate::report::{Report, Sabotage};

/// Bytes of each disk; the image asks for as many.
const DISK: u64 = 64 << 20;
/// As the image numbers the disks.
const DISKS: [&str; 2] = ["nvme", "blk"];

/// QEMU's `virt` with four CPUs.
#[derive(Clone, Copy)]
pub struct Machine {
    /// The exception level at which the image starts.
    pub el: u8,
    /// SMMUs; with two, the virtio devices are behind the second.
    pub smmus: u8,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} SMMU{} at EL{}", self.smmus, if self.smmus == 1 { "" } else { "s" }, self.el)
    }
}

impl Machine {
    /// Boots `image` and waits for its end, no longer than `limit`.
    ///
    /// # Errors
    /// Whatever is not as it should be: the image's verdict, its report, the contents of the disks.
    pub fn run(&self, qemu: &Qemu, image: &Path, limit: Duration) -> Result<Report, Box<dyn Error>> {
        let folder = disks()?;
        let console = self.boot(qemu, image, folder.path(), "", limit)?;
        let report = Report::read(&console, self.el, self.smmus)?;
        for (number, disk) in (0..).zip(DISKS) {
            check_disk(number, &folder.path().join(disk))?;
        }
        Ok(report)
    }

    /// Boots `image` and has it do something wrong.
    ///
    /// # Errors
    /// The image does not notice.
    pub fn run_sabotaged(
        &self,
        qemu: &Qemu,
        image: &Path,
        sabotage: &Sabotage,
        limit: Duration,
    ) -> Result<(), Box<dyn Error>> {
        let folder = disks()?;
        let command_line = format!("sabotage={}", sabotage.name);
        let console = self.boot(qemu, image, folder.path(), &command_line, limit)?;
        Ok(sabotage.check(&console, Report::read(&console, self.el, self.smmus))?)
    }

    fn boot(
        &self,
        qemu: &Qemu,
        image: &Path,
        disks: &Path,
        command_line: &str,
        limit: Duration,
    ) -> Result<Vec<String>, Box<dyn Error>> {
        let mut command = Command::new(qemu.path());
        command.args(self.arguments(image, disks)?).args(["-append", command_line]);
        watch(&mut command, limit)
    }

    fn arguments(&self, image: &Path, folder: &Path) -> Result<Vec<String>, Box<dyn Error>> {
        let mut lines = vec![
            // Nothing that is not asked for.
            "-no-user-config -nodefaults -display none -serial stdio".to_owned(),
            "-machine virt,gic-version=3 -accel tcg -cpu cortex-a72 -smp 4 -m 512M".to_owned(),
            "-netdev user,id=net,restrict=on".to_owned(),
        ];
        if self.el == 2 {
            lines.push("-machine virtualization=on".to_owned());
        }
        let mut virtio_bus = ["pcie.0", "pcie.0"];
        if self.smmus == 1 {
            lines.push("-machine iommu=smmuv3".to_owned());
        } else {
            // Another root bus with an SMMU of its own. What is plugged into it are ports.
            lines.push("-device arm-smmuv3,primary-bus=pcie.0".to_owned());
            lines.push("-device pxb-pcie,id=pcie.1,bus=pcie.0,addr=8,bus_nr=128".to_owned());
            lines.push("-device arm-smmuv3,primary-bus=pcie.1".to_owned());
            virtio_bus = ["port0", "port1"];
            for port in 0..3 {
                lines.push(format!("-device pcie-root-port,id=port{port},bus=pcie.1,addr={port},chassis={port}"));
            }
            // So that there is one behind each SMMU. It has no disk, and needs none to write to memory.
            lines.push("-device nvme,bus=port2,serial=second".to_owned());
        }
        let [blk_bus, net_bus] = virtio_bus;
        const VIRTIO: &str = "disable-legacy=on,iommu_platform=on";
        lines.push("-device nvme,bus=pcie.0,drive=nvme,serial=smmuv3".to_owned());
        lines.push(format!("-device virtio-blk-pci,bus={blk_bus},drive=blk,{VIRTIO}"));
        lines.push(format!("-device virtio-net-pci,bus={net_bus},netdev=net,romfile=,{VIRTIO}"));

        let mut arguments: Vec<String> = lines.iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect();
        // Paths may contain spaces.
        let path = |path: &Path| path.to_str().map(str::to_owned).ok_or(format!("{} is not UTF-8", path.display()));
        arguments.extend(["-kernel".to_owned(), path(image)?]);
        for disk in DISKS {
            // In a list of options, a comma is written twice.
            let file = path(&folder.join(disk))?.replace(',', ",,");
            arguments.extend(["-drive".to_owned(), format!("if=none,id={disk},format=raw,cache=unsafe,file={file}")]);
        }
        Ok(arguments)
    }
}

/// A folder with the disks as the image is to find them.
fn disks() -> Result<TempDir, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    for (number, disk) in (0..).zip(DISKS) {
        write_disk(number, &folder.path().join(disk))?;
    }
    Ok(folder)
}

fn write_disk(number: u64, file: &Path) -> Result<(), Box<dyn Error>> {
    let mut contents = vec![0; DISK as usize];
    pattern::fill(number, false, 0, &mut contents);
    File::create_new(file)?.write_all(&contents)?;
    Ok(())
}

/// The image was to write all of it.
fn check_disk(number: u64, file: &Path) -> Result<(), Box<dyn Error>> {
    let contents = fs::read(file)?;
    if contents.len() as u64 != DISK {
        return Err(format!("the file of disk {number} has now {} bytes", contents.len()).into());
    }
    match pattern::first_difference(number, true, 0, &contents) {
        Some(at) => Err(format!("disk {number} does not hold what the image was to write: see byte {at:#x}").into()),
        None => Ok(()),
    }
}

/// Runs QEMU, shows what it prints, and returns it.
fn watch(command: &mut Command, limit: Duration) -> Result<Vec<String>, Box<dyn Error>> {
    let deadline = Instant::now() + limit;
    let mut qemu = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
    let stdout = qemu.0.stdout.take().ok_or("no standard output")?;
    let mut stderr = qemu.0.stderr.take().ok_or("no standard error")?;
    let complaints = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut output = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("    {line}");
                output.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => return Err(format!("the image did not end within {limit:?}").into()),
        }
    }
    let status = qemu.0.wait()?;
    if !status.success() {
        let complaints = complaints.join().map_err(|_| "the reader of QEMU's messages died")??;
        return Err(format!("QEMU ended with {status} and said: {}", complaints.trim()).into());
    }
    Ok(output)
}

/// A QEMU that ends when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Vec<String>, String> {
        watch(Command::new("sh").args(["-c", script]), limit).map_err(|error| error.to_string())
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn what_a_program_prints_is_returned() {
        assert_eq!(shell("echo one; echo two", LONG), Ok(vec!["one".to_owned(), "two".to_owned()]));
    }

    #[test]
    fn a_program_that_fails_is_an_error_and_so_is_one_that_does_not_end() {
        let error = shell("echo verdict: pass; echo no such device >&2; exit 1", LONG).unwrap_err();
        assert!(error.contains("no such device"), "{error}");
        let error = shell("echo verdict: pass; exec sleep 1000", Duration::from_millis(1)).unwrap_err();
        assert!(error.contains("did not end"), "{error}");
    }

    #[test]
    fn a_disk_must_hold_all_that_was_to_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        let check = |contents: &[u8]| {
            fs::write(&file, contents).unwrap();
            check_disk(1, &file).map_err(|error| error.to_string())
        };
        let mut contents = vec![0; DISK as usize];
        pattern::fill(1, true, 0, &mut contents);
        assert_eq!(check(&contents), Ok(()));
        assert!(check(&contents[..contents.len() - 8]).is_err(), "too short");
        *contents.last_mut().unwrap() ^= 1;
        assert!(check(&contents).unwrap_err().contains("0x3fffff8"), "the last byte");
        write_disk(1, &folder.path().join("fresh")).unwrap();
        assert!(check_disk(1, &folder.path().join("fresh")).is_err(), "nothing was written");
    }
}
