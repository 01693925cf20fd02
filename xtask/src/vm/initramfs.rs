//! The machine's whole file system: busybox, this tree's binaries, Debian's programs with the libraries they name, and
//! the kernel's modules.

use super::kernel::Kernel;
use super::modules;
use crate::command;
use crate::stage::{Stage, found};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const INIT: &str = include_str!("init.sh");
/// What the lab and its agents call; busybox has the rest.
const PROGRAMS: &[&str] = &[
    "ip", "tc", "ss", "bpftool", "curl", "tcpdump", "nginx", "socat", "ncat", "openssl", "ping", "nsenter",
    "unshare", "setpriv", "mount", "umount", "find", "timeout", "env", "rm", "cp", "mkdir", "sleep", "cat",
    "kill", "ps", "pgrep", "grep", "sed", "nft", "sysctl", "prlimit",
];
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/false\ntcpdump:x:102:102::/:/bin/false\n\
    nobody:x:65534:65534::/:/bin/false\n";
const GROUPS: &str = "root:x:0:\nadm:x:4:\nwww-data:x:33:\ntcpdump:x:102:\nnogroup:x:65534:\n";

/// Where Debian's programs are taken from.
pub enum Programs {
    /// This machine's own, looked for in these folders.
    Found(OsString),
    /// A file system that holds them and all that they need.
    Whole(PathBuf),
}

/// What nobody in a machine reads.
const SUPERFLUOUS: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/i18n",
    "usr/share/info",
    "usr/share/zoneinfo",
];

/// What goes in besides the programs.
pub struct Contents<'a> {
    /// Of this tree, each into /usr/local/bin.
    pub binaries: Vec<PathBuf>,
    /// Others of this tree: from where, and at which place in the machine.
    pub others: Vec<(PathBuf, PathBuf)>,
    /// Names in the machine for what is elsewhere in it: name and target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Text: at which place in the machine, and what stands there.
    pub files: Vec<(PathBuf, String)>,
    /// The kernel programs, as /heddle.o.
    pub object: PathBuf,
    /// Debian's programs.
    pub programs: &'a Programs,
    /// As GNU's programs for the machine's processor are called.
    pub gnu: &'a str,
    /// The shell script that is the machine's work. `MARKER` in it becomes the image's marker.
    pub script: &'a str,
}

/// A finished image.
pub struct Image {
    /// Not compressed: an emulated machine takes longer to unpack it than this one to hand over all of it.
    pub file: PathBuf,
    /// The word before the result on the console; another one each time, so that nothing else prints it.
    pub marker: String,
}

/// Builds the image in `folder`.
pub fn build(kernel: &Kernel, contents: &Contents, folder: &Path) -> Result<Image> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot clear {}", root.display()))?;
    }
    let stage = Stage { root };
    programs(&stage, contents.programs)?;
    for binary in &contents.binaries {
        let name = binary.file_name().context("a binary without a name")?;
        stage.stripped(binary, &Path::new("usr/local/bin").join(name), contents.gnu)?;
    }
    for (binary, inside) in &contents.others {
        stage.stripped(binary, inside, contents.gnu)?;
    }
    for (inside, text) in &contents.files {
        stage.write(inside, text)?;
    }
    for (name, target) in &contents.links {
        stage.link(name, target)?;
    }
    stage.place(&contents.object, "heddle.o")?;

    let mut order = String::new();
    for file in modules::in_order(&kernel.modules)? {
        let name = modules::name_of(&file).context("a module without a name")? + ".ko";
        stage.write(format!("modules/{name}"), modules::read(&file)?)?;
        order.push_str(&name);
        order.push('\n');
    }
    stage.write("modules/order", order)?;
    stage.write("etc/passwd", USERS)?;
    stage.write("etc/group", GROUPS)?;
    for folder in ["var/log/nginx", "var/lib/nginx", "etc/nginx", "lib64"] {
        stage.folder(folder)?;
    }

    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let marker = format!("HEDDLE-RESULT-{now:x}");
    stage.write("init", INIT.replace("MARKER", &marker))?;
    fs::set_permissions(stage.root.join("init"), fs::Permissions::from_mode(0o755))?;
    stage.write("work.sh", contents.script.replace("MARKER", &marker))?;

    let file = folder.join("initramfs.cpio");
    pack(&stage.root, &file)?;
    // With the tests it is a gigabyte, once for each kernel.
    fs::remove_dir_all(&stage.root).with_context(|| format!("cannot remove {}", stage.root.display()))?;
    Ok(Image { file, marker })
}

fn programs(stage: &Stage, programs: &Programs) -> Result<()> {
    match programs {
        Programs::Found(search) => {
            stage.place(&found("busybox", search)?, "bin/busybox")?;
            for program in PROGRAMS {
                stage.with_libraries(&found(program, search)?, &Path::new("usr/sbin").join(program))?;
            }
            // busybox's shell would prefer busybox's own `ip` and the like to those in PATH.
            stage.with_libraries(&found("sh", search)?, Path::new("bin/sh"))?;
            // openssl reads it whatever it is asked to do.
            stage.place(Path::new("/etc/ssl/openssl.cnf"), "usr/lib/ssl/openssl.cnf")
        }
        Programs::Whole(from) => {
            command::run(Command::new("cp").arg("-a").arg(from).arg(&stage.root))?;
            for folder in SUPERFLUOUS {
                let folder = stage.root.join(folder);
                if folder.is_dir() {
                    fs::remove_dir_all(&folder)
                        .with_context(|| format!("cannot remove {}", folder.display()))?;
                }
            }
            Ok(())
        }
    }
}

fn pack(root: &Path, file: &Path) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "find . -print0 | cpio --null --create --format=newc --quiet --owner=0:0 >\"$1\"",
        "pack",
    ]);
    let status = shell.arg(file).current_dir(root).stdin(Stdio::null()).status().context("cannot run sh")?;
    if !status.success() {
        bail!("the initramfs could not be packed into {}", file.display());
    }
    Ok(())
}
