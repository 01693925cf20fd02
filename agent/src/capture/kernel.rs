//! Loads the kernel programs, or adopts what an earlier agent left pinned, and keeps them attached.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use aya::{Ebpf, EbpfLoader, maps::MapInfo};
use heddle_ebpf::{
    SCHEMA,
    attach::{Limits, maps as attach_maps},
    codes::Outcome,
    judge::{Answer, Question, SLOT},
};

use super::{
    clock,
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
    /// Places in the maps, by name; a table's name stands for both of its sets. What does not fit is refused.
    pub capacity: BTreeMap<String, u32>,
}

/// A size that was asked for and is not in force: the map was pinned before, and a pinned map keeps its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSize {
    /// The map, as the configuration names it.
    pub map: String,
    /// How many places it was to have.
    pub asked: u32,
    /// How many it has.
    pub has: u32,
}

/// The loaded programs and their pins.
pub struct Kernel {
    pub(super) ebpf: Mutex<Ebpf>,
    pub(super) pins: Pins,
    pub(super) links: PathBuf,
    root: PathBuf,
    cgroup: PathBuf,
    limits: Limits,
    adopted: bool,
    kept: Vec<KeptSize>,
    /// The maps that the programs use, by the kernel's numbers.
    ids: BTreeMap<&'static str, u32>,
}

impl Kernel {
    /// Loads the programs onto the pinned maps, which are made where they are missing. Nothing is attached yet.
    ///
    /// # Errors
    /// When the host lacks something, the kernel refuses a program, or pinned maps have another layout.
    pub fn load(options: &KernelOptions) -> Result<Self, CaptureError> {
        require(&options.bpffs, BPF_FS_MAGIC, CaptureError::NoBpffs)?;
        require(&options.cgroup, CGROUP2_SUPER_MAGIC, CaptureError::NoCgroup)?;
        let root = options.bpffs.join("heddle");
        let version = Self::version_directory(&options.bpffs);
        let (pins, links) = (Pins::new(version.join("maps")), version.join("links"));
        for directory in [&root, &version, &pins.directory().to_owned(), &links] {
            private_directory(directory)?;
        }
        let adopted = pins.path(attach_maps::PODS).exists();

        let sizes: Vec<(String, u32)> = options
            .capacity
            .iter()
            .flat_map(|(name, places)| {
                ALL.iter()
                    .filter(move |map| {
                        *map == name || map.strip_suffix("_0").or(map.strip_suffix("_1")) == Some(name)
                    })
                    .map(|map| ((*map).to_owned(), *places))
            })
            .collect();
        let mut loader = EbpfLoader::new();
        for (name, places) in &sizes {
            loader.map_max_entries(name, *places);
        }
        for name in ALL {
            loader.map_pin_path(name, pins.path(name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(Box::new)?;
        let mut ids = BTreeMap::new();
        for name in ALL {
            ebpf.map(name).ok_or_else(|| CaptureError::Missing(format!("map {name}")))?;
            let found = MapInfo::from_pin(pins.path(name)).map_err(CaptureError::map(name))?;
            fits(&found, name)?;
            ids.insert(*name, found.id());
        }
        let kept = kept(&pins, &options.capacity);
        programs::load(&mut ebpf)?;
        Ok(Self {
            ebpf: Mutex::new(ebpf),
            pins,
            links,
            root,
            cgroup: options.cgroup.clone(),
            limits: options.limits,
            adopted,
            kept,
            ids,
        })
    }

    /// Puts the bounds in force and attaches what belongs to the node as a whole. Links that an earlier agent pinned get
    /// these programs at once, without a gap.
    pub(super) fn enforce(&self) -> Result<(), CaptureError> {
        let mut limits = self.pins.array::<Limits>(attach_maps::LIMITS)?;
        limits.set(0, self.limits, 0).map_err(CaptureError::map(attach_maps::LIMITS))?;
        let mut ebpf = self.ebpf.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        programs::attach_to_cgroup(&mut ebpf, &self.cgroup, &self.links)
    }

    /// Where this version's maps and links are pinned.
    pub(super) fn version_directory(bpffs: &Path) -> PathBuf {
        bpffs.join("heddle").join(format!("v{SCHEMA}"))
    }

    /// Whether an earlier agent's pins were found.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Sizes that were asked for and are not in force.
    pub fn kept_sizes(&self) -> &[KeptSize] {
        &self.kept
    }

    /// The programs for the node's cgroup that are not attached to it.
    pub(super) fn detached(&self) -> impl Iterator<Item = &'static str> {
        programs::detached(&self.links)
    }

    /// Attaches those that are not attached.
    pub(super) fn attach_detached(&self) -> Result<(), CaptureError> {
        if self.detached().next().is_none() {
            return Ok(());
        }
        let mut ebpf = self.ebpf.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        programs::attach_to_cgroup(&mut ebpf, &self.cgroup, &self.links)
    }

    /// The maps whose pin is gone, or leads to another map than the one that the programs use. A restarted agent would
    /// make those anew, empty.
    pub(super) fn unpinned(&self) -> impl Iterator<Item = &'static str> {
        let own =
            |name: &str, id: u32| MapInfo::from_pin(self.pins.path(name)).is_ok_and(|found| found.id() == id);
        self.ids.iter().filter(move |(name, id)| !own(name, **id)).map(|(name, _)| *name)
    }

    /// Pins those again.
    pub(super) fn pin_again(&self) -> Result<(), CaptureError> {
        for name in self.unpinned() {
            let path = self.pins.path(name);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(CaptureError::path("removing", &path)(error));
            }
            let ebpf = self.ebpf.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let map = ebpf.map(name).ok_or_else(|| CaptureError::Missing(format!("map {name}")))?;
            map.pin(&path).map_err(|error| CaptureError::path("pinning", &path)(io::Error::other(error)))?;
        }
        Ok(())
    }

    /// Whether one of the agent's listeners is in a slot of `listeners`.
    pub(super) fn listener_in(&self, slot: u32) -> Result<bool, CaptureError> {
        let question = Question { direction: SLOT, port: slot, ..Question::default() };
        Ok(self.judge(&question)?.outcome == Outcome::Direct as u32)
    }

    /// Asks the kernel for its verdict on a connection, under the tables in force.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn judge(&self, question: &Question) -> Result<Answer, CaptureError> {
        let mut ebpf = self.ebpf.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        programs::judge(&mut ebpf, question)
    }

    /// How many places a map has; a table's name stands for its first set. 0: there is no such map.
    pub fn places(&self, map: &str) -> u64 {
        places(&self.pins, map).map_or(0, u64::from)
    }

    /// How old the agent's last sign of life is, as the programs see it; `None`: it gave none.
    pub fn heartbeat_age(&self) -> Option<Duration> {
        beat_age(&self.pins)
    }

    /// Where everything is pinned.
    pub fn pinned_at(&self) -> &Path {
        &self.root
    }
}

/// How old the last sign of life is of whichever agent serves the node of this bpffs; `None`: there is none.
pub fn heartbeat_age(bpffs: &Path) -> Option<Duration> {
    beat_age(&Pins::new(Kernel::version_directory(bpffs).join("maps")))
}

fn beat_age(pins: &Pins) -> Option<Duration> {
    let beat = pins.array::<u64>(attach_maps::HEARTBEAT).ok()?.get(&0, 0).ok()?;
    (beat != 0).then(|| Duration::from_nanos(clock::monotonic().saturating_sub(beat)))
}

fn places(pins: &Pins, map: &str) -> Option<u32> {
    let names = [map.to_owned(), format!("{map}_0")];
    names.iter().find_map(|name| MapInfo::from_pin(pins.path(name)).ok()).map(|info| info.max_entries())
}

/// A map under a pinned link cannot be made anew without a moment in which its rows are missing; so it is told.
fn kept(pins: &Pins, capacity: &BTreeMap<String, u32>) -> Vec<KeptSize> {
    capacity
        .iter()
        .filter_map(|(map, asked)| {
            let has = places(pins, map)?;
            (has != *asked).then(|| KeptSize { map: map.clone(), asked: *asked, has })
        })
        .collect()
}

fn require(path: &Path, magic: i64, error: impl FnOnce(PathBuf) -> CaptureError) -> Result<(), CaptureError> {
    match rustix::fs::statfs(path) {
        Ok(found) if found.f_type == magic => Ok(()),
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
fn fits(found: &MapInfo, name: &str) -> Result<(), CaptureError> {
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
