//! The compiled kernel programs, carried inside the binary.

/// The ELF object that `cargo xtask ebpf` built.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("HEDDLE_BPF_OBJECT"));
