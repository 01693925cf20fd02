//! Loads the kernel programs, or adopts what an earlier agent left pinned, and keeps them attached.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
};

use aya::{Btf, Ebpf, EbpfLoader, maps::MapInfo};
use heddle_ebpf::{
    SCHEMA,
    attach::{Limits, maps as attach_maps},
    judge::{Answer, Question},
};

use super::{
    error::CaptureError,
    maps::{ALL, Pins},
    object::OBJECT,
    programs,
};

/// `BPF_FS_MAGIC`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// Where and how the programs are attached.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Mount point of the bpf file system.
    pub bpffs: PathBuf,
    /// Directory of the cgroup v2 hierarchy whose processes are captured.
    pub cgroup: PathBuf,
    /// Bounds that the programs obey.
    pub limits: Limits,
    /// Map sizes.
    pub capacity: Capacity,
}

/// How much the maps hold. What does not fit is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Pods of the cluster, by address.
    pub workloads: u32,
    /// Ports with a policy, of this node's pods.
    pub ports: u32,
    /// Pairs of a port's rules and a class of clients.
    pub allows: u32,
    /// Networks in rules.
    pub networks: u32,
    /// Services' ports.
    pub services: u32,
    /// Endpoints of Services' ports.
    pub backends: u32,
    /// Live `direct` connections' ends.
    pub direct_flows: u32,
    /// Handshakes under way.
    pub handshakes: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            workloads: 16_384,
            ports: 16_384,
            allows: 65_536,
            networks: 16_384,
            services: 16_384,
            backends: 65_536,
            direct_flows: 262_144,
            handshakes: 65_536,
        }
    }
}

/// The loaded programs and their pins.
pub struct Kernel {
    pub(super) ebpf: Mutex<Ebpf>,
    pub(super) pins: Pins,
    pub(super) links: PathBuf,
    root: PathBuf,
    adopted: bool,
}

impl Kernel {
    /// Loads the programs onto the pinned maps, which are made where they are missing, and attaches what belongs to
    /// the node as a whole. Links that an earlier agent pinned get the new programs at once, without a gap.
    ///
    /// # Errors
    /// When the host lacks something, the kernel refuses a program, or pinned maps have another layout.
    pub fn load(options: &KernelOptions) -> Result<Self, CaptureError> {
        require(&options.bpffs, BPF_FS_MAGIC, CaptureError::NoBpffs)?;
        require(&options.cgroup, CGROUP2_SUPER_MAGIC, CaptureError::NoCgroup)?;
        let root = options.bpffs.join("heddle");
        let version = root.join(format!("v{SCHEMA}"));
        let (pins, links) = (Pins::new(version.join("maps")), version.join("links"));
        for directory in [&root, &version, &pins.directory().to_owned(), &links] {
            private_directory(directory)?;
        }
        let adopted = pins.path(attach_maps::PODS).exists();

        let capacity = &options.capacity;
        let sizes: [(&str, u32); 15] = [
            ("workloads_0", capacity.workloads),
            ("workloads_1", capacity.workloads),
            ("ports_0", capacity.ports),
            ("ports_1", capacity.ports),
            ("allows_0", capacity.allows),
            ("allows_1", capacity.allows),
            ("networks_0", capacity.networks),
            ("networks_1", capacity.networks),
            ("services_0", capacity.services),
            ("services_1", capacity.services),
            ("backends_0", capacity.backends),
            ("backends_1", capacity.backends),
            ("direct_flows", capacity.direct_flows),
            ("direct_opening", capacity.handshakes),
            ("proxied", capacity.handshakes),
        ];
        let btf = Btf::from_sys_fs().ok();
        let mut loader = EbpfLoader::new();
        loader.btf(btf.as_ref());
        for (name, size) in sizes {
            loader.map_max_entries(name, size);
        }
        for name in ALL {
            loader.map_pin_path(name, pins.path(name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(Box::new)?;
        for name in ALL {
            ebpf.map(name).ok_or_else(|| CaptureError::Missing(format!("map {name}")))?;
            fits(&pins, name)?;
        }
        programs::load(&mut ebpf)?;
        let mut limits = pins.array::<Limits>(attach_maps::LIMITS)?;
        limits.set(0, options.limits, 0).map_err(CaptureError::map(attach_maps::LIMITS))?;
        programs::attach_to_cgroup(&mut ebpf, &options.cgroup, &links)?;
        Ok(Self { ebpf: Mutex::new(ebpf), pins, links, root, adopted })
    }

    /// Whether an earlier agent's pins were found.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Asks the kernel for its verdict on a connection, under the tables in force.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn judge(&self, question: &Question) -> Result<Answer, CaptureError> {
        let mut ebpf = self.ebpf.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        programs::judge(&mut ebpf, question)
    }

    /// Takes everything away that was pinned below `bpffs`, whoever pinned it: pods are free of the mesh afterwards.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn release(bpffs: &Path) -> Result<bool, CaptureError> {
        require(bpffs, BPF_FS_MAGIC, CaptureError::NoBpffs)?;
        let root = bpffs.join("heddle");
        match fs::remove_dir_all(&root) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(CaptureError::path("removing", &root)(error)),
        }
    }

    /// Where everything is pinned.
    pub fn pinned_at(&self) -> &Path {
        &self.root
    }
}

fn require(path: &Path, magic: i64, error: impl FnOnce(PathBuf) -> CaptureError) -> Result<(), CaptureError> {
    match rustix::fs::statfs(path) {
        Ok(found) if found.f_type as i64 == magic => Ok(()),
        _ => Err(error(path.to_owned())),
    }
}

fn private_directory(path: &Path) -> Result<(), CaptureError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .map_err(CaptureError::path("setting the mode of", path))
        }
        Err(error) => Err(CaptureError::path("making", path)(error)),
    }
}

/// A pin is reused as it is, whatever its size: so its size is compared with what was asked for.
fn fits(pins: &Pins, name: &str) -> Result<(), CaptureError> {
    let found = MapInfo::from_pin(pins.path(name)).map_err(CaptureError::map(name))?;
    let Some(expected) = super::maps::layout(name) else {
        return Ok(());
    };
    if (found.key_size(), found.value_size()) != expected {
        return Err(CaptureError::Layout {
            map: name.to_owned(),
            found: format!("keys of {} and values of {} bytes", found.key_size(), found.value_size()),
            expected: format!("keys of {} and values of {} bytes", expected.0, expected.1),
        });
    }
    Ok(())
}
