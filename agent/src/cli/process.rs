//! What this process lets others see of it.

use miette::miette;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use super::Failure;

/// Leaves no core, whatever ends the process, and lets nobody but root look into its memory: keys are in there.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn keep_secrets() -> Result<(), Failure> {
    let failed = |error| miette!("the process's memory cannot be kept to itself: {error}");
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed)?;
    // A core may be piped to a program in spite of the limit only where the process is dumpable.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(failed)
}

/// A build for FIPS runs with its module in force or not at all.
///
/// # Errors
/// If it is not in force.
pub(super) fn keep_to_the_module() -> Result<(), Failure> {
    heddle_identity::check_module().map_err(|why| {
        miette!(
            help = "this program was built with the feature `fips`: run it where its module can run, or use the ordinary build",
            "the FIPS module is not in force: {why}"
        )
    })
}
