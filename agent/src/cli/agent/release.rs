//! `heddle release`: nothing of Heddle's stays in force on this host.

use super::{
    super::{
        Failure,
        config::{Place, PlaceFlags},
        door::SOCKET,
        render,
    },
    refused, take, wiring,
};
use miette::miette;
use std::{io::ErrorKind, path::Path, process::ExitCode};

/// Takes down what an agent left: what is attached to interfaces, pinned programs and maps, the socket.
///
/// # Errors
/// If an agent still runs, or something cannot be removed.
pub fn release(flags: &PlaceFlags) -> Result<ExitCode, Failure> {
    let place = Place::load(flags).map_err(|error| refused(&error))?;
    // Whoever holds the lock is alone.
    let directory = take(&place.run_directory)?;
    let mut removed = wiring::release(&place)?;
    let pins = place.bpffs.join("heddle");
    if unpin(&pins)? {
        removed.push(pins.display().to_string());
    }
    if directory.path().join(SOCKET).exists() {
        directory.close();
        removed.push(directory.path().join(SOCKET).display().to_string());
    }
    if removed.is_empty() {
        render::print("nothing of Heddle's was in force here")?;
    }
    for what in removed {
        render::print(&format!("removed {what}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Removing a link's last pin detaches its program.
fn unpin(pins: &Path) -> Result<bool, Failure> {
    match std::fs::remove_dir_all(pins) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(miette!(
            help = "run as root, with bpffs mounted where the agent had it (--bpffs)",
            "{} cannot be removed: {error}",
            pins.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_go_with_everything_below_and_their_absence_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let pins = dir.path().join("heddle");
        std::fs::create_dir_all(pins.join("v1/links")).unwrap();
        std::fs::write(pins.join("v1/links/connect4"), "").unwrap();
        assert!(unpin(&pins).unwrap());
        assert!(!pins.exists() && !unpin(&pins).unwrap());
    }
}
