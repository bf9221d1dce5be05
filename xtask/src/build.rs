//! Builds the image.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "aarch64-unknown-none";
const NAME: &str = "smmuv3-qemu-virt";

/// Builds the image and returns the file: with the compiler that is in use, if it has the target, else, or if `debian`, with that of Debian's packages
/// `rustc-web`, `cargo-web` and `rust-web-src`, which builds `core` too, and the linker of the package `lld`.
pub fn image(debian: bool) -> Result<PathBuf, Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/qemu-virt");
    let target_folder = folder.join("target");
    let mut cargo = if !debian && has_target()? {
        Command::new("cargo")
    } else {
        let mut cargo = Command::new("/usr/bin/cargo");
        cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_NONE_LINKER", "ld.lld");
        cargo.arg("-Zbuild-std=core,alloc");
        cargo
    };
    cargo.args(["build", "--release", "--locked", "--target", TARGET]);
    cargo.current_dir(&folder).arg("--target-dir").arg(&target_folder);
    let status = cargo.status().map_err(|error| format!("cannot run {cargo:?}: {error}"))?;
    if !status.success() {
        return Err(format!("the image was not built: {cargo:?}").into());
    }
    Ok(target_folder.join(TARGET).join("release").join(NAME))
}

/// Whether the compiler that is in use has `core` for the target.
fn has_target() -> Result<bool, Box<dyn Error>> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    let output = rustc.output().map_err(|error| format!("cannot run {rustc:?}: {error}"))?;
    Ok(Path::new(String::from_utf8(output.stdout)?.trim()).is_dir())
}
