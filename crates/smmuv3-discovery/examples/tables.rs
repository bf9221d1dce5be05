//! Writes the device tree and the IORT of QEMU's machine `virt` into a folder: those of a machine with one SMMU, and
//! where QEMU can have several, those of a machine with two. `tests/data/README.md` says when this is wanted.

use std::error::Error;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, iter};

use smmuv3_qemu::{Qemu, QemuError, Qtest};

/// What both machines have.
const COMMON: &str = "-no-user-config -nodefaults -display none -cpu cortex-a57 -m 128M -S";

/// A kind of machine.
struct Machine {
    name: &'static str,
    arguments: &'static str,
    /// Its root ports: bus, device number, and the bus that the port gets behind it.
    ports: &'static [(u8, u8, u8)],
}

const ONE: Machine = Machine {
    name: "one",
    arguments: "-machine virt,gic-version=3,iommu=smmuv3 -device pcie-root-port,id=port0,bus=pcie.0,addr=1,chassis=1",
    ports: &[(0, 1, 1)],
};
/// The second SMMU is in front of bus 128 and up.
const TWO: Machine = Machine {
    name: "two",
    arguments: "-machine virt,gic-version=3 -device arm-smmuv3,primary-bus=pcie.0 \
        -device pcie-root-port,id=port0,bus=pcie.0,addr=1,chassis=1 \
        -device pxb-pcie,id=pcie.1,bus=pcie.0,addr=0x11,bus_nr=128 -device arm-smmuv3,primary-bus=pcie.1 \
        -device pcie-root-port,id=port1,bus=pcie.1,addr=1,chassis=2",
    ports: &[(0, 1, 1), (128, 1, 129)],
};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let folder = env::args_os().nth(1).ok_or("which folder to write to?")?;
    let folder = Path::new(&folder);
    let qemu = Qemu::find()?;
    write(&qemu, &ONE, folder)?;
    match qemu.has_several_smmus() {
        true => write(&qemu, &TWO, folder)?,
        false => println!("QEMU {} has no machine with two SMMUs", qemu.version()),
    }
    Ok(())
}

fn write(qemu: &Qemu, machine: &Machine, folder: &Path) -> Outcome<()> {
    for (kind, bytes) in [("dtb", device_tree(qemu, machine)?), ("iort", iort(qemu, machine)?)] {
        let path = folder.join(format!("virt-{}.{kind}", machine.name));
        println!("{}: {} bytes, QEMU {}", path.display(), bytes.len(), qemu.version());
        fs::write(path, bytes)?;
    }
    Ok(())
}

/// The device tree, without the room that QEMU leaves at its end.
fn device_tree(qemu: &Qemu, machine: &Machine) -> Outcome<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("dtb");
    let dump = format!("dumpdtb={}", path.display());
    let status = command(qemu, machine).arg("-machine").arg(dump).status()?;
    if !status.success() {
        return Err(format!("QEMU ended with {status}").into());
    }
    let mut tree = fs::read(path)?;
    let field = |tree: &[u8], at: usize| Outcome::Ok(u32::from_be_bytes(tree[at..at + 4].try_into()?));
    // The strings come last: off_dt_strings and size_dt_strings of the header.
    let end = field(&tree, 12)? + field(&tree, 32)?;
    tree.truncate(end as usize);
    tree[4..8].copy_from_slice(&end.to_be_bytes());
    Ok(tree)
}

fn iort(qemu: &Qemu, machine: &Machine) -> Outcome<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("qtest");
    let listener = UnixListener::bind(&socket)?;
    let mut process = command(qemu, machine)
        .args(["-accel", "tcg", "-qtest-log", "none", "-qtest"])
        .arg(format!("unix:{}", socket.display()))
        .spawn()?;
    let (stream, _) = listener.accept()?;
    let qtest = Qtest::new(stream)?;
    number_buses(&qtest, machine.ports)?;
    let table = read_iort(&FwCfg(qtest));
    process.kill()?;
    process.wait()?;
    table
}

/// Does what firmware has done when it asks for the tables: QEMU's IORT has the buses that are behind bridges by then.
fn number_buses(qtest: &Qtest, ports: &[(u8, u8, u8)]) -> Result<(), QemuError> {
    const ECAM: u64 = 0x40_1000_0000;
    for &(bus, device, behind) in ports {
        let port = ECAM + (u64::from(bus) << 20) + (u64::from(device) << 15);
        // Primary, secondary and subordinate bus number.
        for (offset, number) in [(0x18, bus), (0x19, behind), (0x1a, behind)] {
            qtest.write8(port + offset, number)?;
        }
    }
    Ok(())
}

fn command(qemu: &Qemu, machine: &Machine) -> Command {
    let mut command = Command::new(qemu.path());
    command.args(machine.arguments.split_whitespace()).args(COMMON.split_whitespace()).stdin(Stdio::null());
    command
}

fn read_iort(fw_cfg: &FwCfg) -> Outcome<Vec<u8>> {
    const TABLES: &str = "etc/acpi/tables";
    let tables = fw_cfg.file(TABLES)?;
    let (start, length) = tables_in(&tables)
        .find(|(start, _)| tables[*start..].starts_with(b"IORT"))
        .ok_or("QEMU has no IORT for this machine")?;
    let mut table = tables.get(start..start + length).ok_or("the IORT is cut off")?.to_vec();
    // QEMU leaves it to the firmware to compute checksums: command 3 of the loader's script, with the file's name, and where
    // the checksum is, and the first byte and the number of those that it covers.
    let script = fw_cfg.file("etc/table-loader")?;
    for command in script.chunks_exact(128).filter(|command| command[0] == 3) {
        let name = command[4..60].split(|byte| *byte == 0).next().unwrap_or_default();
        let field = |at: usize| Outcome::Ok(u32::from_le_bytes(command[at..at + 4].try_into()?) as usize);
        if name == TABLES.as_bytes() && (field(64)?, field(68)?) == (start, length) {
            let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            table[field(60)? - start] = sum.wrapping_neg();
        }
    }
    Ok(table)
}

/// Where each table starts, and its length.
fn tables_in(tables: &[u8]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut next = 0;
    iter::from_fn(move || {
        let start = next;
        let length = u32::from_le_bytes(tables.get(start + 4..start + 8)?.try_into().ok()?) as usize;
        next += length;
        (length > 0).then_some((start, length))
    })
}

/// QEMU's fw_cfg device: <https://www.qemu.org/docs/master/specs/fw_cfg.html>.
struct FwCfg(Qtest);

impl FwCfg {
    const DATA: u64 = 0x0902_0000;
    const SELECTOR: u64 = FwCfg::DATA + 8;
    const DIRECTORY: u16 = 0x19;

    fn file(&self, name: &str) -> Outcome<Vec<u8>> {
        self.select(FwCfg::DIRECTORY)?;
        let count = u32::from_be_bytes(self.array()?);
        for _ in 0..count {
            let size = u32::from_be_bytes(self.array()?);
            let selector = u16::from_be_bytes(self.array()?);
            let _reserved: [u8; 2] = self.array()?;
            let entry: [u8; 56] = self.array()?;
            if entry.starts_with(name.as_bytes()) && entry[name.len()] == 0 {
                self.select(selector)?;
                return Ok((0..size).map(|_| self.byte()).collect::<Result<_, _>>()?);
            }
        }
        Err(format!("fw_cfg has no {name}").into())
    }

    fn select(&self, selector: u16) -> Result<(), QemuError> {
        self.0.write16(FwCfg::SELECTOR, selector.swap_bytes())
    }

    fn byte(&self) -> Result<u8, QemuError> {
        self.0.read8(FwCfg::DATA)
    }

    fn array<const N: usize>(&self) -> Result<[u8; N], QemuError> {
        let mut array = [0; N];
        for byte in &mut array {
            *byte = self.byte()?;
        }
        Ok(array)
    }
}
