use std::{io, path::PathBuf};

/// What went wrong between the agent and its kernel.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The path is no bpffs.
    #[error("{0} is not a bpf file system; mount one there: mount -t bpf bpf {0}")]
    NoBpffs(PathBuf),
    /// The path is no cgroup v2 directory.
    #[error("{0} is not a directory of a cgroup v2 hierarchy; name one with `cgroup` in the configuration")]
    NoCgroup(PathBuf),
    /// A file could not be used.
    #[error("{what} {path}: {source}")]
    Path {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused something.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("the kernel programs could not be loaded: {0}")]
    Object(#[from] Box<aya::EbpfError>),
    /// A program could not be loaded or attached.
    #[error("kernel program {program}: {what}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: Box<aya::programs::ProgramError>,
    },
    /// A map could not be opened, read or written.
    #[error("kernel map {map}: {source}")]
    Map {
        /// Its name.
        map: String,
        /// Why it failed.
        source: Box<aya::maps::MapError>,
    },
    /// A pinned map has another layout than this binary expects.
    #[error(
        "pinned map {map} holds {found} where this version expects {expected}; \
         run `heddle release` to take the old version's capture away, then start again"
    )]
    Layout {
        /// Its name.
        map: String,
        /// Key size, value size and entries that are there.
        found: String,
        /// Those that were expected.
        expected: String,
    },
    /// The object lacks something that the agent needs.
    #[error("the embedded kernel programs lack {0}; build the agent again with `cargo xtask build`")]
    Missing(String),
    /// A question to the kernel came back unanswered.
    #[error("the kernel gave no verdict: {0}")]
    NoVerdict(String),
}

impl CaptureError {
    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
    pub(super) fn path(what: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Path { what, path, source }
    }
    pub(super) fn map(map: &str) -> impl FnOnce(aya::maps::MapError) -> Self {
        let map = map.to_owned();
        move |source| Self::Map { map, source: Box::new(source) }
    }
}
