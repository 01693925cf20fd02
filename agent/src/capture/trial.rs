//! What a kernel must offer, tried before anything is attached: each need by itself and by its name, then the programs
//! themselves, all of it in namespaces and folders that are gone afterwards.

use std::{
    fs,
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::MapType,
    programs::{CgroupAttachMode, Program, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

use super::{namespace, object::OBJECT, programs, sock_diag, syscalls};

/// The program types, what they do here, and the kernel's functions that they call.
const PROGRAMS: [(ProgramType, &str, &[BpfHelper]); 4] = {
    use BpfHelper as Call;
    [
        (
            ProgramType::CgroupSockAddr,
            "connect, bind and getpeername",
            &[
                Call::BPF_FUNC_map_lookup_elem,
                Call::BPF_FUNC_map_update_elem,
                Call::BPF_FUNC_ktime_get_ns,
                Call::BPF_FUNC_get_prandom_u32,
                Call::BPF_FUNC_get_current_pid_tgid,
                Call::BPF_FUNC_get_current_comm,
                Call::BPF_FUNC_sk_storage_get,
                Call::BPF_FUNC_get_netns_cookie,
                Call::BPF_FUNC_ringbuf_reserve,
                Call::BPF_FUNC_ringbuf_submit,
                Call::BPF_FUNC_loop,
                Call::BPF_FUNC_set_retval,
            ],
        ),
        (
            ProgramType::SockOps,
            "who connects and who listens",
            &[
                Call::BPF_FUNC_map_lookup_elem,
                Call::BPF_FUNC_map_update_elem,
                Call::BPF_FUNC_map_delete_elem,
                Call::BPF_FUNC_ktime_get_ns,
                Call::BPF_FUNC_get_prandom_u32,
                Call::BPF_FUNC_get_socket_cookie,
                Call::BPF_FUNC_sock_ops_cb_flags_set,
                Call::BPF_FUNC_sk_storage_get,
                Call::BPF_FUNC_get_netns_cookie,
                Call::BPF_FUNC_ringbuf_reserve,
                Call::BPF_FUNC_ringbuf_submit,
            ],
        ),
        (
            ProgramType::SkLookup,
            "new connections into a pod",
            &[
                Call::BPF_FUNC_map_lookup_elem,
                Call::BPF_FUNC_map_update_elem,
                Call::BPF_FUNC_ktime_get_ns,
                Call::BPF_FUNC_get_smp_processor_id,
                Call::BPF_FUNC_sk_release,
                Call::BPF_FUNC_sk_assign,
                Call::BPF_FUNC_ringbuf_reserve,
                Call::BPF_FUNC_ringbuf_submit,
            ],
        ),
        (
            ProgramType::SchedClassifier,
            "the guard",
            &[
                Call::BPF_FUNC_map_lookup_elem,
                Call::BPF_FUNC_map_update_elem,
                Call::BPF_FUNC_map_delete_elem,
                Call::BPF_FUNC_ktime_get_ns,
                Call::BPF_FUNC_get_prandom_u32,
                Call::BPF_FUNC_skb_store_bytes,
                Call::BPF_FUNC_skb_load_bytes,
                Call::BPF_FUNC_skb_cgroup_id,
                Call::BPF_FUNC_sk_release,
                Call::BPF_FUNC_sk_fullsock,
                Call::BPF_FUNC_get_listener_sock,
                Call::BPF_FUNC_sk_storage_get,
                Call::BPF_FUNC_ringbuf_reserve,
                Call::BPF_FUNC_ringbuf_submit,
            ],
        ),
    ]
};

/// The map types, and what is in them.
const MAPS: [(MapType, &str); 9] = [
    (MapType::Array, "settings and the heartbeat"),
    (MapType::Hash, "pods, rules and connections"),
    (MapType::LruHash, "flows of datagrams"),
    (MapType::PerCpuHash, "counters"),
    (MapType::PerCpuArray, "packets"),
    (MapType::LpmTrie, "networks"),
    (MapType::SockMap, "the agent's listeners"),
    (MapType::SkStorage, "marks on sockets"),
    (MapType::RingBuf, "events"),
];

/// One need, and what came of the trial.
#[derive(Debug)]
pub struct Trial {
    /// What was tried, in the kernel's own words.
    pub what: String,
    /// What an agent does with it.
    pub purpose: &'static str,
    /// Why it failed.
    pub lacking: Option<String>,
}

impl Trial {
    fn new(what: impl Into<String>, purpose: &'static str, tried: Result<(), String>) -> Self {
        Self { what: what.into(), purpose, lacking: tried.err() }
    }
}

/// Tries program types, their helpers, map types and waiting for programs, one by one. Nothing is loaded that stays.
pub fn features() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (kind, purpose, helpers) in PROGRAMS {
        let known = is_program_supported(kind).map_err(chain).and_then(offered);
        let there = known.is_ok();
        trials.push(Trial::new(format!("program type {kind:?}"), purpose, known));
        if !there {
            continue;
        }
        for helper in helpers {
            let tried = is_helper_supported(kind, *helper).map_err(chain).and_then(offered);
            let name = format!("{helper:?}").replacen("BPF_FUNC_", "bpf_", 1);
            trials.push(Trial::new(format!("{name} in {kind:?}"), purpose, tried));
        }
    }
    for (kind, purpose) in MAPS {
        let tried = is_map_supported(kind).map_err(chain).and_then(offered);
        trials.push(Trial::new(format!("map type {kind:?}"), purpose, tried));
    }
    trials.push(Trial::new(
        "a grace period behind an update of map type ArrayOfMaps",
        "one change of rules at a time",
        syscalls::grace_period().map_err(chain),
    ));
    trials
}

/// Loads the programs and attaches them to places made for it: a cgroup below `cgroup`, a network namespace. Pins a map
/// in `bpffs`. All of it is removed again.
pub fn rehearsal(bpffs: &Path, cgroup: &Path) -> Vec<Trial> {
    let mut trials = Vec::new();
    let loaded = EbpfLoader::new().load(OBJECT).map_err(chain);
    let mut ebpf = match loaded {
        Ok(ebpf) => ebpf,
        Err(error) => {
            trials.push(Trial::new("maps", "everything", Err(error)));
            return trials;
        }
    };
    trials.push(Trial::new("maps", "everything", Ok(())));
    let verified = programs::load(&mut ebpf).map_err(chain);
    let good = verified.is_ok();
    trials.push(Trial::new("programs pass the verifier", "everything", verified));
    if good {
        trials.push(Trial::new(
            "attach to a cgroup",
            "connect, bind and sockops",
            in_a_cgroup(&mut ebpf, cgroup),
        ));
        trials.push(Trial::new(
            "attach to a network namespace and an interface",
            "new connections into a pod, and the guard",
            in_a_namespace(&mut ebpf),
        ));
    }
    trials.push(Trial::new("pin in bpffs", "what stands without the agent", in_bpffs(&mut ebpf, bpffs)));
    trials.push(Trial::new("SOCK_DESTROY", "ending connections that rules forbid", destroys()));
    trials
}

fn offered(known: bool) -> Result<(), String> {
    if known { Ok(()) } else { Err("this kernel does not have it".to_owned()) }
}

/// An error with its causes; of a verifier's log the last lines, which say why.
fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [first, .., why, _] if lines.len() > 3 => format!("{first} … {why}"),
        _ => lines.join(" "),
    }
}

/// A folder that goes with its value.
struct Scratch<'a>(&'a Path);

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // A cgroup or a folder of bpffs; what cannot be removed was not made.
        drop(fs::remove_dir(self.0));
    }
}

fn named(parent: &Path) -> std::path::PathBuf {
    parent.join(format!("heddle-check-{}", std::process::id()))
}

fn in_a_cgroup(ebpf: &mut Ebpf, cgroup: &Path) -> Result<(), String> {
    let path = named(cgroup);
    fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let _removed = Scratch(&path);
    let directory = fs::File::open(&path).map_err(chain)?;
    for (name, program) in ebpf.programs_mut() {
        let attached = match program {
            Program::CgroupSockAddr(program) => program
                .attach(&directory, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id).map(drop)),
            Program::SockOps(program) => program
                .attach(&directory, CgroupAttachMode::Single)
                .and_then(|id| program.take_link(id).map(drop)),
            _ => Ok(()),
        };
        attached.map_err(|error| format!("{name}: {}", chain(error)))?;
    }
    Ok(())
}

fn in_a_namespace(ebpf: &mut Ebpf) -> Result<(), String> {
    namespace::within_a_new_one(|| programs::rehearse(ebpf).map_err(chain)).map_err(chain)?
}

fn in_bpffs(ebpf: &mut Ebpf, bpffs: &Path) -> Result<(), String> {
    let path = named(bpffs);
    fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let _removed = Scratch(&path);
    let (_, map) = ebpf.maps().next().ok_or("no map")?;
    let pin = path.join("map");
    map.pin(&pin).map_err(chain)?;
    fs::remove_file(&pin).map_err(chain)
}

fn destroys() -> Result<(), String> {
    let own = super::Namespace::own().map_err(chain)?;
    ends_a_connection(|local, remote| sock_diag::destroy(&own, local, remote))
}

/// Whether `destroy` ends a connection: one to loopback, made for this. That there is no such socket is no answer: a
/// kernel without `tcp_diag` gives the same.
fn ends_a_connection(destroy: impl FnOnce(SocketAddr, SocketAddr) -> io::Result<()>) -> Result<(), String> {
    let at_loopback = |error: io::Error| format!("no connection can be made at loopback: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(at_loopback)?;
    let local = listener.local_addr().map_err(at_loopback)?;
    let client = TcpStream::connect(local).map_err(at_loopback)?;
    let remote = client.local_addr().map_err(at_loopback)?;
    let mut served = loop {
        // Somebody else may have been quicker to connect.
        let (served, peer) = listener.accept().map_err(at_loopback)?;
        if peer == remote {
            break served;
        }
    };
    served.set_nonblocking(true).map_err(at_loopback)?;
    match destroy(local, remote) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            return Err("the kernel is built without CONFIG_INET_DIAG_DESTROY".to_owned());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err("the kernel finds no TCP connection by its addresses: is CONFIG_INET_TCP_DIAG (tcp_diag) there?".to_owned());
        }
        Err(error) => return Err(error.to_string()),
    }
    match served.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
        read => Err(format!("a connection was asked to be ended and goes on: reading gives {read:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya_obj::{Object, ProgramSection};
    use std::collections::{BTreeMap, BTreeSet, HashSet};

    /// A call of one of the kernel's functions: `BPF_JMP | BPF_CALL`, and no register as source.
    const CALL: u8 = 0x85;

    #[test]
    fn every_helper_that_a_program_calls_is_tried() {
        let mut object = Object::parse(OBJECT).unwrap();
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_calls(&text).unwrap();
        let mut called: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for program in object.programs.values() {
            let kind = match program.section {
                ProgramSection::CgroupSockAddr { .. } => ProgramType::CgroupSockAddr,
                ProgramSection::SockOps => ProgramType::SockOps,
                ProgramSection::SkLookup => ProgramType::SkLookup,
                ProgramSection::SchedClassifier => ProgramType::SchedClassifier,
                ref other => panic!("{other:?} is not tried at all"),
            };
            let function = &object.functions[&(program.section_index, program.address)];
            let calls = function.instructions.iter().filter(|one| one.code == CALL && one.src_reg() == 0);
            let calls = calls.map(|one| one.imm.unsigned_abs());
            // Events of a process name it; the verifier leaves that branch out of programs that run for none.
            let of_a_task = [BpfHelper::BPF_FUNC_get_current_pid_tgid, BpfHelper::BPF_FUNC_get_current_comm];
            let reached = calls.filter(|call| {
                kind == ProgramType::CgroupSockAddr || of_a_task.iter().all(|helper| *call != *helper as u32)
            });
            called.entry(format!("{kind:?}")).or_default().extend(reached);
        }
        let tried: BTreeMap<String, BTreeSet<u32>> = PROGRAMS
            .into_iter()
            .map(|(kind, _, helpers)| (format!("{kind:?}"), helpers.iter().map(|it| *it as u32).collect()))
            .collect();
        assert_eq!(tried, called);
    }

    #[test]
    fn every_type_of_map_is_tried() {
        let object = Object::parse(OBJECT).unwrap();
        let used: BTreeSet<u32> = object.maps.values().map(aya_obj::Map::map_type).collect();
        assert_eq!(MAPS.into_iter().map(|(kind, _)| kind as u32).collect::<BTreeSet<_>>(), used);
    }

    #[test]
    fn a_destroyer_that_ends_nothing_is_found_out() {
        let refused = |kind: io::ErrorKind| ends_a_connection(move |_, _| Err(kind.into())).unwrap_err();
        assert!(refused(io::ErrorKind::NotFound).contains("CONFIG_INET_TCP_DIAG"));
        assert!(refused(io::ErrorKind::Unsupported).contains("CONFIG_INET_DIAG_DESTROY"));
        refused(io::ErrorKind::PermissionDenied);
        let said = ends_a_connection(|_, _| Ok(())).unwrap_err();
        assert!(said.contains("goes on"), "{said}");
    }

    #[test]
    #[ignore = "needs root: cargo xtask test"]
    fn this_kernel_ends_connections() {
        destroys().unwrap();
    }

    #[test]
    fn of_a_verifier_s_log_the_reason_is_said() {
        let error = io::Error::other("cannot load\n0: r1\n1: exit\nR0 !read_ok\nprocessed 2 insns\n");
        assert_eq!(chain(error), "cannot load … R0 !read_ok");
        assert_eq!(chain(io::Error::other("short")), "short");
    }
}
