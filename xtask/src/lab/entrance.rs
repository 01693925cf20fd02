//! A way into a lab for a person: a script that runs programs in its pods and nodes.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::Place;

/// Writes the script into `folder`: `in PLACE PROGRAM…`.
pub(super) fn write<'a>(
    folder: &Path,
    places: impl IntoIterator<Item = (&'a str, &'a Place)>,
) -> Result<PathBuf> {
    let mut script = String::from(
        "#!/bin/sh\n# Runs a program in a pod, a node or outside: in PLACE PROGRAM…\nplace=$1; shift\ncase $place in\n",
    );
    for (name, place) in places {
        writeln!(script, "{name}) {} ;;", place.shell_words("\"$@\""))?;
    }
    script.push_str("*) echo \"no place $place\" >&2; exit 2 ;;\nesac\n");
    let path = folder.join("in");
    fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(path)
}
