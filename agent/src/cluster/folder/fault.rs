use std::fmt;

/// A document that is no YAML or JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The line, from 1; 0 where none is known.
    pub line: u64,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            f.write_str(&self.message)
        } else {
            write!(f, "line {}: {}", self.line, self.message)
        }
    }
}

/// Why a file or folder is not taken as it is now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It belongs to somebody else.
    #[error("it belongs to uid {owner}, not to uid {wanted} that the agent runs as")]
    Owner {
        /// Whose it is.
        owner: u32,
        /// Whose it must be.
        wanted: u32,
    },
    /// A folder above it belongs to somebody who could put another in its place.
    #[error("{folder}, in the path to it, belongs to uid {owner}, who could put another folder in its place")]
    PathOwner {
        /// The folder above.
        folder: String,
        /// Whose it is.
        owner: u32,
    },
    /// A folder above it may be written by others.
    #[error("{folder}, in the path to it, has mode {mode:04o}: others could put another folder in its place")]
    PathWritable {
        /// The folder above.
        folder: String,
        /// Its mode.
        mode: u32,
    },
    /// Others may write to it.
    #[error("its mode is {mode:04o}: others than its owner may write to it")]
    Writable {
        /// Its mode.
        mode: u32,
    },
    /// It is neither a file nor a folder.
    #[error("it is a {kind}, not a regular file")]
    Kind {
        /// What it is.
        kind: &'static str,
    },
    /// It is longer than is read.
    #[error("it is {size} bytes long; at most {limit} are read")]
    TooLarge {
        /// Its length.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// With it the folder is more than is read.
    #[error("with it the folder holds more than {limit} {what}")]
    FolderTooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A symbolic link that leads out of the folder.
    #[error("it is a symbolic link that leads out of the folder, to {target}")]
    LinkOutside {
        /// Where it leads.
        target: String,
    },
    /// Symbolic links without end.
    #[error("its symbolic links lead in a circle or are more than {limit}")]
    LinkLoop {
        /// The limit.
        limit: usize,
    },
    /// It was written to while it was read, again and again.
    #[error("it changed each of the {times} times it was read")]
    Unsettled {
        /// How often it was tried.
        times: u32,
    },
    /// It is no text.
    #[error("it is not UTF-8 at byte {at}")]
    Encoding {
        /// The first byte that is not.
        at: usize,
    },
    /// It is no YAML.
    #[error("{0}")]
    Malformed(Malformed),
    /// The system refused.
    #[error("cannot {doing} it: {}", std::io::Error::from(*error))]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        error: rustix::io::Errno,
    },
}

impl Fault {
    pub(super) fn system(doing: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |error| Self::System { doing, error }
    }

    /// Whether somebody else than the agent's user could have written it: an alarm, not a mistake in typing.
    pub fn is_insecure(&self) -> bool {
        matches!(
            self,
            Self::Owner { .. }
                | Self::PathOwner { .. }
                | Self::PathWritable { .. }
                | Self::Writable { .. }
                | Self::LinkOutside { .. }
        )
    }

    /// Whether reading the same bytes again would end the same way.
    pub(super) fn is_of_content(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::Encoding { .. })
    }

    /// What to do about it.
    pub fn remedy(&self, path: &str) -> String {
        match self {
            Self::Owner { wanted, .. } => format!("chown {wanted} {path}"),
            Self::PathOwner { folder, .. } => {
                format!(
                    "keep the manifests where every folder above belongs to root or the agent's user, or: chown root {folder}"
                )
            }
            Self::PathWritable { folder, .. } => format!("chmod go-w {folder}"),
            Self::Writable { .. } => format!("chmod go-w {path}"),
            Self::Kind { .. } => format!("remove {path} or put a regular file in its place"),
            Self::TooLarge { .. } => format!("split {path} into several files"),
            Self::FolderTooLarge { .. } => "take what the cluster does not need out of the folder".into(),
            Self::LinkOutside { .. } => {
                format!("put the file itself at {path}, or a relative link within the folder")
            }
            Self::LinkLoop { .. } => format!("put the file itself at {path}"),
            Self::Unsettled { .. } => format!("write the new content beside {path} and rename it into place"),
            Self::Encoding { .. } => format!("save {path} as UTF-8"),
            Self::Malformed(_) => {
                format!("correct {path}; `heddle policy check` on its folder shows each problem")
            }
            Self::System { error: rustix::io::Errno::NOENT, .. } => format!("put {path} there"),
            Self::System { error: rustix::io::Errno::ACCESS | rustix::io::Errno::PERM, .. } => {
                format!("let the agent's user read {path}")
            }
            Self::System { .. } => format!("see that {path} can be read"),
        }
    }
}
