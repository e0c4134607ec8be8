//! Compiles the engine for the checker: everything in this package sees cfg(loom).

fn main() {
    println!("cargo::rustc-cfg=loom");
}
