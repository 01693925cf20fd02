//! Finds the kernel programs that `cargo xtask ebpf` built, so that the binary carries them, and makes Rust of the
//! protocols in `proto/`.

use std::{env, path::PathBuf};

fn main() {
    protocols();
    kernel_programs();
}

/// protox is the compiler: no protoc needs to be installed.
fn protocols() {
    const PROTOCOLS: [&str; 3] = ["proto/ca.proto", "proto/spire.proto", "proto/workload.proto"];
    PROTOCOLS.iter().for_each(|file| println!("cargo:rerun-if-changed={file}"));
    let parsed = protox::compile(PROTOCOLS, ["proto"]).unwrap_or_else(|error| panic!("{error}"));
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .compile_fds(parsed)
        .unwrap_or_else(|error| panic!("the protocols cannot be made into Rust: {error}"));
}

fn kernel_programs() {
    println!("cargo:rerun-if-env-changed=HEDDLE_BPF");
    let path = match env::var_os("HEDDLE_BPF") {
        Some(path) => PathBuf::from(path),
        None => {
            // <target>/<profile>/build/heddle-<hash>/out -> <target>/bpf/heddle.o, with or without a target triple.
            let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
            let found = out.ancestors().map(|dir| dir.join("bpf/heddle.o")).find(|path| path.is_file());
            found.unwrap_or_else(|| {
                let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
                root.join("../target/bpf/heddle.o")
            })
        }
    };
    println!("cargo:rerun-if-changed={}", path.display());
    assert!(
        path.is_file(),
        "the kernel programs are not built: no {}. Run `cargo xtask ebpf` first, or name the object in HEDDLE_BPF.",
        path.display()
    );
    println!("cargo:rustc-env=HEDDLE_BPF_OBJECT={}", path.display());
}
