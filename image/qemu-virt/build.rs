//! Tells the linker where the image goes.

fn main() {
    // The sections are those of aarch64-rt, the addresses those of the machine.
    println!("cargo::rustc-link-arg-bins=-Timage.ld");
    println!("cargo::rustc-link-arg-bins=-T{}/memory.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rerun-if-changed=memory.ld");
}
