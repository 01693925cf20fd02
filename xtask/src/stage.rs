//! A folder that becomes the file system of a machine or of an image: programs of this tree and of Debian's, with the
//! libraries that they name.

use crate::command;
use anyhow::{Context, Result, bail};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian's packages for this machine have their libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// A program, by its name.
pub fn found(program: &str, search: &OsString) -> Result<PathBuf> {
    env::split_paths(search)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("`{program}` is not in PATH: it belongs into an image"))
}

/// The folder.
pub struct Stage {
    /// Where it is.
    pub root: PathBuf,
}

impl Stage {
    /// Makes a folder.
    pub fn folder(&self, inside: impl AsRef<Path>) -> Result<()> {
        let path = self.root.join(inside);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))
    }

    /// Writes a file.
    pub fn write(&self, inside: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        let inside = inside.as_ref();
        if let Some(parent) = inside.parent() {
            self.folder(parent)?;
        }
        let path = self.root.join(inside);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Places a copy of a file.
    pub fn place(&self, file: &Path, inside: impl AsRef<Path>) -> Result<()> {
        let target = self.root.join(inside);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        fs::copy(file, &target).with_context(|| format!("cannot copy {} into the image", file.display()))?;
        Ok(())
    }

    /// Places a program and, at their own paths, the libraries and the loader that `ldd` names.
    pub fn with_libraries(&self, file: &Path, inside: &Path) -> Result<()> {
        self.with_libraries_of(Path::new("/"), file, inside)
    }

    /// The same for a program of a system that is unpacked under `root` in part: the rest is this machine's.
    pub fn with_libraries_of(&self, root: &Path, file: &Path, inside: &Path) -> Result<()> {
        self.place(file, inside)?;
        let mut ldd = Command::new("ldd");
        ldd.arg(file);
        if root != Path::new("/") {
            ldd.env("LD_LIBRARY_PATH", root.join(LIBRARIES));
        }
        // Fails for a static binary, which needs none.
        let Ok(said) = command::output(&mut ldd) else { return Ok(()) };
        if let Some(missing) = said.lines().find(|line| line.contains("=> not found")) {
            bail!("{} needs a library that this machine lacks: {}", file.display(), missing.trim());
        }
        for library in libraries(&said).map(Path::new) {
            let inside = library.strip_prefix(root).or_else(|_| library.strip_prefix("/"))?;
            if !self.root.join(inside).exists() {
                self.place(library, inside)?;
            }
        }
        Ok(())
    }

    /// A binary of this tree for the processor that GNU calls `gnu`. Names of functions stay, for backtraces.
    pub fn stripped(&self, file: &Path, inside: &Path, gnu: &str) -> Result<()> {
        self.with_libraries(file, inside)?;
        command::run(Command::new(format!("{gnu}-strip")).arg("--strip-debug").arg(self.root.join(inside)))
    }

    /// Makes a link.
    pub fn link(&self, name: &Path, target: &Path) -> Result<()> {
        let path = self.root.join(name.strip_prefix("/").unwrap_or(name));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        std::os::unix::fs::symlink(target, &path)
            .with_context(|| format!("cannot make the link {}", path.display()))
    }
}

/// Paths in what `ldd` says: `name => /path (0x…)` and `/loader (0x…)`.
fn libraries(said: &str) -> impl Iterator<Item = &str> {
    said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::libraries;

    #[test]
    fn libraries_and_loader_are_read_from_ldd() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found: Vec<&str> = libraries(said).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }
}
