//! The verifier spends on the kernel programs about what is recorded: none creeps towards a limit unseen.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use xtask::verifier;

#[test]
#[ignore = "needs root: cargo xtask test"]
fn no_program_has_become_dearer_to_verify_unseen_and_libbpf_loads_them() -> Result<()> {
    let own = std::env::current_exe()?;
    let beside = || own.ancestors().map(|folder| folder.join("bpf/heddle.o")).find(|path| path.is_file());
    let given = std::env::var_os("HEDDLE_BPF").map(PathBuf::from);
    let object = given.or_else(beside).context("no kernel programs: cargo xtask ebpf")?;
    let now = verifier::measure(Command::new("unshare"), &object)?;
    let series = verifier::series()?;
    // On a kernel that nobody has recorded it is shown that the programs load.
    if let Some(before) = verifier::recorded(&series)? {
        let risen = verifier::risen(&now, &before);
        assert!(risen.is_empty(), "{}\nif it must be so: cargo xtask verifier --record", risen.join("\n"));
    }
    Ok(())
}
