//! `cargo xtask verifier`: what the kernel's verifier spends on each program, here or in a virtual machine.

use crate::toolchain::Choice;
use crate::workspace::Workspace;
use crate::{ebpf, privilege};
use anyhow::{Result, bail};
use std::path::PathBuf;
use xtask::verifier;

/// What the kernel's verifier spends on each program, beside what is recorded for this kernel series
///
/// Fails where something has risen by more than a tenth. On another kernel: `cargo xtask vm smoke --kernel 6.1 -- xtask
/// verifier --object /heddle.o`.
#[derive(clap::Args)]
pub struct Arguments {
    /// These kernel programs, without building any.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// Record the figures for this kernel series in xtask/verifier.json.
    #[arg(long)]
    record: bool,
}

/// Measures, prints and compares, or records.
pub fn run(arguments: &Arguments) -> Result<()> {
    let object = match &arguments.object {
        Some(object) => object.clone(),
        None => ebpf::run(&Workspace::find()?, &ebpf::Arguments { compiler: Choice::Auto })?,
    };
    let now = verifier::measure(privilege::as_root("unshare")?, &object)?;
    let series = verifier::series()?;
    let before = verifier::recorded(&series)?;
    verifier::print(&now, before.as_ref());
    if arguments.record {
        return verifier::record(&Workspace::find()?.root.join("xtask/verifier.json"), &series, &now);
    }
    let Some(before) = before else {
        println!("nothing is recorded for {series}: `cargo xtask verifier --record` does");
        return Ok(());
    };
    let risen = verifier::risen(&now, &before);
    if !risen.is_empty() {
        bail!("{}\nif it must be so: `cargo xtask verifier --record`", risen.join("\n"));
    }
    Ok(())
}
