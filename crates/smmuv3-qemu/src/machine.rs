//! A QEMU machine of this crate's making: its command line, its start and its end.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use smmuv3::platform::PhysAddr;
use tempfile::NamedTempFile;

use crate::edu::{Edu, EduError};
use crate::error::QemuError;
use crate::find::Qemu;
use crate::pci::{self, Bdf, Function, RootBus};
use crate::platform::{QemuMmio, QemuPlatform};
use crate::process::Process;
use crate::qtest::Qtest;
use crate::ram::Ram;

// The memory map of QEMU's machine `virt`.
const SMMU: u64 = 0x0905_0000;
/// Where the SMMUs are that are devices of the command line, in its order.
const SEVERAL_SMMUS: [u64; 2] = [0x0c00_0000, 0x0c02_0000];
const RAM: PhysAddr = PhysAddr(0x4000_0000);
const PCI: pci::Layout = pci::Layout { ecam: 0x40_1000_0000, memory_start: 0x1000_0000, memory_end: 0x3eff_0000 };

/// Where the CPU sleeps. QEMU puts its device tree into the first 1 MiB of RAM.
const PARKING: u64 = 0x4020_0000;
/// `wfi; b .-4` in A64.
const SLEEP: u64 = 0x17ff_ffff_d503_207f;
/// DMA memory is given out from here to the end of RAM.
const POOL: PhysAddr = PhysAddr(0x4040_0000);

// Device numbers on bus 0.
const FIRST_EDU: u8 = 1;
const NVME: u8 = 16;
/// What the second root bus hangs on.
const EXPANDER: u8 = 17;

/// The second root bus.
const SECOND_ROOT: u8 = 128;
/// The number of the first device on it. Only bridges may be there: each edu is alone behind one.
const FIRST_PORT: u8 = 1;

const MIB: u64 = 1 << 20;
/// How long QEMU may take to connect.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after closing its socket QEMU may take to end.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// What the machine has.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Bytes of RAM, a multiple of 1 MiB from 16 MiB to 64 GiB. All of it is taken from `/dev/shm`, or where that is
    /// too small from the folder for temporary files. The first 4 MiB are not given out as DMA memory.
    pub ram: u64,
    /// Bytes of the NVMe disk, a multiple of 1 MiB, at least 1 MiB. It starts as zeros.
    pub disk: u64,
    /// How many `edu` devices, 0 to 15. With one SMMU, they have the StreamIDs `0x8`, `0x10`, and so on. With two,
    /// number 0, 2, 4 and so on have those StreamIDs at the first SMMU; number 1, 3, 5 and so on are behind the second,
    /// with the StreamIDs `0x8100`, `0x8200`, `0x8300` and so on.
    pub edus: u8,
    /// How many SMMUs, 1 or 2. Two need a QEMU that [has several](Qemu::has_several_smmus).
    pub smmus: u8,
    /// More arguments for QEMU, such as `-d guest_errors`, each word on its own.
    pub more_arguments: Vec<String>,
}

impl Default for MachineConfig {
    /// 128 MiB of RAM, a disk of 64 MiB, two `edu`, and one SMMU.
    fn default() -> Self {
        MachineConfig { ram: 128 * MIB, disk: 64 * MIB, edus: 2, smmus: 1, more_arguments: Vec::new() }
    }
}

impl MachineConfig {
    /// So many `edu` a machine can have.
    pub const MOST_EDUS: u8 = 15;

    fn check(&self, qemu: &Qemu) -> Result<(), QemuError> {
        let MachineConfig { ram, disk, edus, smmus, .. } = *self;
        let bad = if !ram.is_multiple_of(MIB) || !(16 * MIB..=65536 * MIB).contains(&ram) {
            format!("{ram} bytes of RAM are no multiple of 1 MiB from 16 MiB to 64 GiB")
        } else if !disk.is_multiple_of(MIB) || disk == 0 || disk > i64::MAX as u64 {
            format!("a disk of {disk} bytes is no positive multiple of 1 MiB")
        } else if edus > Self::MOST_EDUS {
            format!("{edus} edu devices are more than {}", Self::MOST_EDUS)
        } else if !matches!(smmus, 1 | 2) {
            format!("{smmus} SMMUs are neither 1 nor 2")
        } else if smmus > 1 && !qemu.has_several_smmus() {
            format!("two SMMUs need QEMU {} or newer, this is {}", Qemu::SEVERAL_SMMUS, qemu.version())
        } else {
            return Ok(());
        };
        Err(QemuError::Config(bad))
    }
}

/// A running QEMU with an SMMUv3 in front of its PCI bus 0, and if it has two, one in front of another root bus. It
/// ends when this is dropped.
///
/// The CPU sleeps. The SMMUs are as reset left them: disabled, all DMA passes untranslated.
#[derive(Debug)]
pub struct Machine {
    platform: QemuPlatform,
    functions: Vec<Function>,
    smmus: u8,
    process: Mutex<Process>,
}

impl Machine {
    /// Starts `qemu`, and makes its PCI functions usable. Takes about a tenth of a second.
    ///
    /// Its files have names that cannot be guessed, and none at all once this returns.
    ///
    /// # Errors
    /// - [`QemuError::Config`] for an impossible `config`;
    /// - [`QemuError::Io`] if this host lacks memory, disk space or the like;
    /// - [`QemuError::Exited`], with what QEMU said, if it ended;
    /// - any other that talking to it may bring. No wait is longer than 30 s.
    pub fn start(qemu: &Qemu, config: MachineConfig) -> Result<Machine, QemuError> {
        config.check(qemu)?;
        // Both are deleted at the end of this function, when QEMU has opened what is in them.
        let folder = tempfile::Builder::new()
            .prefix("smmuv3-qemu-")
            .tempdir()
            .map_err(QemuError::io("make a temporary folder"))?;
        let ram_file = ram_file(config.ram, Path::new("/dev/shm"), folder.path())?;

        let disk_path = folder.path().join("disk");
        File::create_new(&disk_path)
            .and_then(|disk| disk.set_len(config.disk))
            .map_err(QemuError::io(format!("make {}", disk_path.display())))?;
        let socket_path = folder.path().join("qtest");
        let listener =
            UnixListener::bind(&socket_path).map_err(QemuError::io(format!("listen at {}", socket_path.display())))?;
        let stderr = tempfile::tempfile_in(folder.path()).map_err(QemuError::io("make a file for QEMU's messages"))?;
        let ram = Ram::map(ram_file.as_file(), RAM).map_err(QemuError::io("map guest RAM"))?;

        let mut command = Command::new(qemu.path());
        command.args(arguments(&config, ram_file.path(), &disk_path, &socket_path)?);
        let mut process = Process::spawn(&mut command, stderr)?;
        let stream = accept(&listener, &mut process)?;
        // QEMU answers once the machine is complete. Until then it may still find fault with its arguments.
        let qtest = Qtest::new(stream)?;
        let functions = pci::scan(&qtest, &PCI, roots(config.smmus)).map_err(|error| explain(error, &mut process))?;
        let platform = QemuPlatform::new(qtest, ram, POOL);
        Ok(Machine { platform, functions, smmus: config.smmus, process: Mutex::new(process) })
    }

    /// The driver's host: guest RAM, clock and barriers.
    pub fn platform(&self) -> &QemuPlatform {
        &self.platform
    }

    /// The registers of the SMMU; if there are two, of the one in front of bus 0.
    pub fn smmu(&self) -> QemuMmio {
        self.platform.registers(if self.smmus == 1 { SMMU } else { SEVERAL_SMMUS[0] })
    }

    /// The registers of the SMMU with the number `index`, from 0.
    ///
    /// # Errors
    /// [`QemuError::NoDevice`] if there are not so many.
    pub fn smmu_at(&self, index: u8) -> Result<QemuMmio, QemuError> {
        match index {
            0 => Ok(self.smmu()),
            1 if self.smmus == 2 => Ok(self.platform.registers(SEVERAL_SMMUS[1])),
            _ => Err(QemuError::NoDevice(format!("SMMU number {index}"))),
        }
    }

    /// How many SMMUs there are.
    pub fn smmus(&self) -> u8 {
        self.smmus
    }

    /// The PCI functions, host bridges and other bridges included, by address.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The `edu` with the number `index`, from 0.
    ///
    /// The caller sees to it that one device is driven through one [`Edu`] at a time.
    ///
    /// # Errors
    /// Those of [`Edu::new`]; [`QemuError::NoDevice`] if there are not so many.
    pub fn edu(&self, index: u8) -> Result<Edu, EduError> {
        let function = (index < MachineConfig::MOST_EDUS)
            .then(|| self.function(edu_place(index, self.smmus)))
            .flatten()
            .ok_or_else(|| QemuError::NoDevice(format!("edu number {index}")))?;
        Edu::new(&self.platform, function)
    }

    /// The NVMe controller, for [`Nvme::start`](crate::Nvme::start).
    ///
    /// # Errors
    /// [`QemuError::NoDevice`].
    pub fn nvme(&self) -> Result<&Function, QemuError> {
        self.function(Bdf { bus: 0, device: NVME, function: 0 })
            .ok_or_else(|| QemuError::NoDevice("NVMe controller".into()))
    }

    /// The first thing that went wrong where nothing else could tell of it, as [`QemuPlatform::error`]; but if QEMU
    /// ended, this tells how.
    pub fn error(&self) -> Option<QemuError> {
        let error = self.platform.error()?;
        Some(explain(error, &mut self.process()))
    }

    /// The process number of QEMU.
    pub fn process_id(&self) -> u32 {
        self.process().id()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn function(&self, bdf: Bdf) -> Option<&Function> {
        self.functions.iter().find(|function| function.bdf == bdf)
    }
}

/// The buses that hang on no bridge.
fn roots(smmus: u8) -> &'static [RootBus] {
    match smmus {
        1 => &[RootBus { number: 0, last: 255, smmu: 0 }],
        _ => &[
            RootBus { number: 0, last: SECOND_ROOT - 1, smmu: 0 },
            RootBus { number: SECOND_ROOT, last: 255, smmu: 1 },
        ],
    }
}

/// Where the `edu` with the number `index` is.
fn edu_place(index: u8, smmus: u8) -> Bdf {
    match index % smmus {
        0 => Bdf { bus: 0, device: FIRST_EDU + index, function: 0 },
        // The buses behind the ports are numbered in the order of the ports.
        _ => Bdf { bus: SECOND_ROOT + 1 + index / 2, device: 0, function: 0 },
    }
}

/// A file of `size` zero bytes: in `preferred` if there is room, else in `fallback`.
fn ram_file(size: u64, preferred: &Path, fallback: &Path) -> Result<NamedTempFile, QemuError> {
    let make = |folder: &Path| -> io::Result<NamedTempFile> {
        let file = tempfile::Builder::new().prefix("smmuv3-qemu-ram-").tempfile_in(folder)?;
        fill(file.as_file(), size)?;
        Ok(file)
    };
    make(preferred)
        .or_else(|_| make(fallback))
        .map_err(QemuError::io(format!("make {size} bytes of guest RAM in {}", fallback.display())))
}

/// Writes `size` zero bytes into `file`, so that all of it is backed and a full file system is an error now.
fn fill(mut file: &File, size: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        let now = left.min(zeros.len() as u64);
        file.write_all(&zeros[..now as usize])?;
        left -= now;
    }
    Ok(())
}

fn arguments(config: &MachineConfig, ram: &Path, disk: &Path, socket: &Path) -> Result<Vec<String>, QemuError> {
    let ram_size = config.ram;
    let (ram, disk, socket) = (in_option(ram)?, in_option(disk)?, in_option(socket)?);
    let mut lines = vec![
        // Nothing that is not asked for.
        "-no-user-config -nodefaults -display none".to_owned(),
        "-machine virt,memory-backend=ram -cpu cortex-a57 -accel tcg".to_owned(),
        "-global arm-smmuv3.stage=nested".to_owned(),
        // Virtual time runs only while the machine does, so the CPU may not be stopped: it sleeps.
        format!("-device loader,addr={PARKING:#x},data={SLEEP:#x},data-len=8"),
        format!("-device loader,addr={PARKING:#x},cpu-num=0"),
        format!("-m {}M", ram_size / MIB),
    ];
    if config.smmus == 1 {
        lines.push("-machine iommu=smmuv3".to_owned());
    } else {
        lines.push("-device arm-smmuv3,primary-bus=pcie.0".to_owned());
        lines.push(format!("-device pxb-pcie,id=pcie.1,bus=pcie.0,addr={EXPANDER:#x},bus_nr={SECOND_ROOT}"));
        lines.push("-device arm-smmuv3,primary-bus=pcie.1".to_owned());
    }
    for index in 0..config.edus {
        let place = edu_place(index, config.smmus);
        let bus = if place.bus == 0 {
            "pcie.0".to_owned()
        } else {
            let port = FIRST_PORT + index / 2;
            lines.push(format!("-device pcie-root-port,id=port{port},bus=pcie.1,addr={port:#x},chassis={port}"));
            format!("port{port}")
        };
        // Without the mask it would drop all but 28 bits of an address.
        lines.push(format!("-device edu,bus={bus},addr={:#x},dma_mask={:#x}", place.device, u64::MAX));
    }
    lines.push(format!("-device nvme,bus=pcie.0,addr={NVME:#x},drive=disk,serial=smmuv3-qemu"));
    let mut arguments: Vec<String> = lines.iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect();
    // Paths may contain spaces.
    arguments.extend([
        "-object".to_owned(),
        format!("memory-backend-file,id=ram,size={ram_size},mem-path={ram},share=on"),
        "-drive".to_owned(),
        format!("if=none,id=disk,format=raw,file={disk}"),
        "-qtest".to_owned(),
        format!("unix:{socket}"),
        "-qtest-log".to_owned(),
        "none".to_owned(),
    ]);
    arguments.extend_from_slice(&config.more_arguments);
    Ok(arguments)
}

/// `path` as the value in a list of QEMU options: a comma is written twice.
fn in_option(path: &Path) -> Result<String, QemuError> {
    path.to_str()
        .map(|path| path.replace(',', ",,"))
        .ok_or_else(|| QemuError::Config(format!("{} is not UTF-8", path.display())))
}

/// Waits for QEMU to connect.
fn accept(listener: &UnixListener, process: &mut Process) -> Result<UnixStream, QemuError> {
    let failed = || QemuError::io("accept QEMU's connection");
    listener.set_nonblocking(true).map_err(failed())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(failed())?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed()(error)),
        }
        if let Some(error) = process.ended(Duration::ZERO) {
            return Err(error);
        }
        if Instant::now() >= deadline {
            return Err(QemuError::NoConnection(PATIENCE));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A closed socket is best explained by the end of the process behind it.
fn explain(error: QemuError, process: &mut Process) -> QemuError {
    match error {
        QemuError::Closed { .. } => process.ended(LAST_BREATH).unwrap_or(error),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find::Version;

    #[test]
    fn impossible_machines_are_refused() {
        let of = |major, minor| Qemu::of_version(Version { major, minor });
        let (old, new) = (of(10, 1), of(10, 2));
        let default = MachineConfig::default;
        default().check(&old).unwrap();
        MachineConfig { smmus: 2, ..default() }.check(&new).unwrap();
        assert_eq!(
            MachineConfig { smmus: 2, ..default() }.check(&old).unwrap_err().to_string(),
            "bad machine configuration: two SMMUs need QEMU 10.2 or newer, this is 10.1"
        );
        for bad in [
            MachineConfig { ram: 0, ..default() },
            MachineConfig { ram: 16 * MIB + 1, ..default() },
            MachineConfig { ram: 8 * MIB, ..default() },
            MachineConfig { ram: u64::MAX - u64::MAX % MIB, ..default() },
            MachineConfig { disk: 0, ..default() },
            MachineConfig { disk: 512, ..default() },
            MachineConfig { edus: 16, ..default() },
            MachineConfig { smmus: 0, ..default() },
            MachineConfig { smmus: 3, ..default() },
        ] {
            assert!(matches!(bad.check(&new), Err(QemuError::Config(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_comma_in_a_path_does_not_end_the_option() {
        assert_eq!(in_option(Path::new("/a b,c")).unwrap(), "/a b,,c");
    }

    #[test]
    fn where_memory_has_no_room_guest_ram_is_a_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let file = ram_file(MIB + 5, &missing, folder.path()).unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), MIB + 5);
        let error = ram_file(MIB, &missing, &missing).unwrap_err();
        let expected = format!("cannot make 1048576 bytes of guest RAM in {}", missing.display());
        assert!(error.to_string().starts_with(&expected), "{error}");
    }

    #[test]
    fn a_program_that_ends_at_once_is_reported_with_what_it_said() {
        // `accept` must notice the end of a process that never connects.
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let stderr = tempfile::tempfile().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such machine >&2; exit 1"]);
        let mut process = Process::spawn(&mut command, stderr).unwrap();
        assert_eq!(
            accept(&listener, &mut process).unwrap_err().to_string(),
            "QEMU ended (exit status: 1) and said: no such machine"
        );
    }
}
