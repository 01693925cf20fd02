//! Loads, attaches and replaces programs. A pinned link gets a new program in one step; a missing one is made.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf, TestRun as _,
    programs::{
        CgroupAttachMode, Program, ProgramError, SchedClassifier, SkLookup, TcAttachType, TestRunOptions,
        links::FdLink,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
};
use heddle_ebpf::judge::{Answer, Question};

use super::{error::CaptureError, links, syscalls};

/// Programs for the node's cgroup, and the name of the pin of each one's link.
const CGROUP: &[(&str, &str)] = &[
    ("heddle_connect4", "connect4"),
    ("heddle_connect6", "connect6"),
    ("heddle_peer4", "getpeername4"),
    ("heddle_peer6", "getpeername6"),
    ("heddle_bind4", "bind4"),
    ("heddle_bind6", "bind6"),
    ("heddle_sockops", "sockops"),
];
const LOOKUP: &str = "heddle_lookup";
const FROM_POD: &str = "heddle_from_pod";
const TO_POD: &str = "heddle_to_pod";
const JUDGE: &str = "heddle_judge";

/// Below 6.6 a program on a veth is a filter of the clsact qdisc, found again by these.
const FILTER_PRIORITY: u16 = 1;
const FILTER_HANDLE: u32 = 0x6865;

/// Whether this kernel attaches programs to interfaces by links.
fn tcx() -> bool {
    aya::util::KernelVersion::current().is_ok_and(|version| version >= aya::util::KernelVersion::new(6, 6, 0))
}

/// Loads every program into the kernel. All at the same time: to verify them takes longer than anything else of a start.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    let cgroup = CGROUP.iter().map(|(name, _)| *name);
    let mut missing: Vec<&'static str> = cgroup.chain([LOOKUP, FROM_POD, TO_POD, JUDGE]).collect();
    std::thread::scope(|scope| {
        let mut loading = Vec::new();
        for (name, program) in ebpf.programs_mut() {
            if let Some(at) = missing.iter().position(|it| *it == name) {
                let name = missing.swap_remove(at);
                loading.push((name, scope.spawn(move || load_one(name, program))));
            }
        }
        for (name, thread) in loading {
            thread
                .join()
                .unwrap_or_else(|_| Err(CaptureError::Missing(format!("program {name} in one piece"))))?;
        }
        match missing.first() {
            Some(name) => Err(CaptureError::Missing(format!("program {name}"))),
            None => Ok(()),
        }
    })
}

fn load_one(name: &'static str, program: &mut Program) -> Result<(), CaptureError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(CaptureError::Missing(format!("program {name} of the right type"))),
    }
    .map_err(failed(name, "loading"))
}

/// Attaches what sees every pod's sockets.
pub(super) fn attach_to_cgroup(ebpf: &mut Ebpf, cgroup: &Path, links: &Path) -> Result<(), CaptureError> {
    let directory = std::fs::File::open(cgroup).map_err(CaptureError::path("opening", cgroup))?;
    for (name, pin) in CGROUP {
        let pin = links.join(pin);
        // cgroup links are always shared; any flag is EINVAL.
        let mode = CgroupAttachMode::Single;
        match program(ebpf, name)? {
            Program::CgroupSockAddr(program) => {
                if replaced(&pin, program.fd().map_err(failed(name, "opening"))?.as_fd())? {
                    continue;
                }
                let id = program.attach(&directory, mode).map_err(failed(name, "attaching"))?;
                let link = program.take_link(id).map_err(failed(name, "keeping its link"))?;
                pinned(name, link.try_into().map_err(|_| no_link(name))?, &pin)?;
            }
            Program::SockOps(program) => {
                if replaced(&pin, program.fd().map_err(failed(name, "opening"))?.as_fd())? {
                    continue;
                }
                let id = program.attach(&directory, mode).map_err(failed(name, "attaching"))?;
                let link = program.take_link(id).map_err(failed(name, "keeping its link"))?;
                pinned(name, link.try_into().map_err(|_| no_link(name))?, &pin)?;
            }
            _ => return Err(CaptureError::Missing(format!("program {name} of the right type"))),
        }
    }
    Ok(())
}

/// Which of them are not attached.
pub(super) fn detached(links: &Path) -> impl Iterator<Item = &'static str> {
    CGROUP.iter().filter(|(_, pin)| !in_force(&links.join(pin))).map(|(program, _)| *program)
}

/// Attaches the look-up to a pod's network namespace.
pub(super) fn attach_lookup(ebpf: &mut Ebpf, namespace: impl AsFd, pin: &Path) -> Result<(), CaptureError> {
    let program = lookup(ebpf)?;
    if replaced(pin, program.fd().map_err(failed(LOOKUP, "opening"))?.as_fd())? {
        return Ok(());
    }
    let id = program.attach(namespace).map_err(failed(LOOKUP, "attaching"))?;
    let link = program.take_link(id).map_err(failed(LOOKUP, "keeping its link"))?;
    pinned(LOOKUP, link.into(), pin)
}

/// Attaches the guard to the host side of a veth, in both directions.
pub(super) fn attach_guard(
    ebpf: &mut Ebpf,
    interface: &str,
    from: &Path,
    to: &Path,
) -> Result<(), CaptureError> {
    // Ingress on the host's side is what the pod sent.
    for (name, direction, pin) in
        [(FROM_POD, TcAttachType::Ingress, from), (TO_POD, TcAttachType::Egress, to)]
    {
        let program = classifier(ebpf, name)?;
        if replaced(pin, program.fd().map_err(failed(name, "opening"))?.as_fd())? {
            continue;
        }
        if tcx() {
            let order = TcAttachOptions::TcxOrder(aya::programs::LinkOrder::first());
            let id = program
                .attach_with_options(interface, direction, order)
                .map_err(failed(name, "attaching"))?;
            let link = program.take_link(id).map_err(failed(name, "keeping its link"))?;
            pinned(name, link.try_into().map_err(|_| no_link(name))?, pin)?;
        } else {
            attach_filter(program, name, interface, direction)?;
        }
    }
    Ok(())
}

/// Attaches look-up and guard to the calling thread's network namespace and its loopback interface, and detaches them.
/// The namespace must be one that goes.
pub(super) fn rehearse(ebpf: &mut Ebpf) -> Result<(), CaptureError> {
    let own = Path::new("/proc/thread-self/ns/net");
    let namespace = std::fs::File::open(own).map_err(CaptureError::path("opening", own))?;
    let program = lookup(ebpf)?;
    let id = program.attach(namespace).map_err(failed(LOOKUP, "attaching"))?;
    drop(program.take_link(id).map_err(failed(LOOKUP, "keeping its link"))?);
    for (name, direction) in [(FROM_POD, TcAttachType::Ingress), (TO_POD, TcAttachType::Egress)] {
        let program = classifier(ebpf, name)?;
        if tcx() {
            let order = TcAttachOptions::TcxOrder(aya::programs::LinkOrder::first());
            let id =
                program.attach_with_options("lo", direction, order).map_err(failed(name, "attaching"))?;
            drop(program.take_link(id).map_err(failed(name, "keeping its link"))?);
        } else {
            attach_filter(program, name, "lo", direction)?;
        }
    }
    Ok(())
}

/// Whether a pinned link is there and still leads to what it was attached to.
pub(super) fn in_force(pin: &Path) -> bool {
    syscalls::open_pin(pin).is_ok_and(|link| syscalls::link_leads_somewhere(link.as_fd()))
}

/// Whether both directions of the guard are attached to a veth.
pub(super) fn guarded(interface: &str, pins: &[std::path::PathBuf; 2]) -> bool {
    if tcx() {
        return pins.iter().all(|pin| in_force(pin));
    }
    let name = interface.to_owned();
    // On a thread of its own: this one may belong to a runtime.
    std::thread::spawn(move || links::filtered(&name, FILTER_PRIORITY, FILTER_HANDLE))
        .join()
        .is_ok_and(|found| found.unwrap_or(false))
}

/// Takes the guard off a veth that stays: the filters of kernels below 6.6, which no pin holds. `false` if there was
/// none.
pub(super) fn detach_guard(interface: &str) -> bool {
    if tcx() {
        return false;
    }
    let mut detached = false;
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        let handle = TcHandle::from(FILTER_HANDLE);
        if let Ok(link) = SchedClassifierLink::attached(interface, direction, FILTER_PRIORITY, handle, None) {
            detached |= aya::programs::links::Link::detach(link).is_ok();
        }
    }
    detached
}

fn attach_filter(
    program: &mut SchedClassifier,
    name: &'static str,
    interface: &str,
    direction: TcAttachType,
) -> Result<(), CaptureError> {
    match aya::programs::tc::qdisc_add_clsact(interface) {
        Ok(()) | Err(TcError::AlreadyAttached) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => {
            let source = ProgramError::TcError(error);
            return Err(failed(name, "adding the clsact qdisc for")(source));
        }
    }
    let handle = TcHandle::from(FILTER_HANDLE);
    let options = NlOptions { priority: FILTER_PRIORITY, handle, ..NlOptions::default() };
    let old = SchedClassifierLink::attached(interface, direction, FILTER_PRIORITY, handle, None);
    let replaced = old.ok().and_then(|old| program.attach_to_link(old).ok());
    let id = match replaced {
        Some(id) => id,
        None => program
            .attach_with_options(interface, direction, TcAttachOptions::Netlink(options))
            .map_err(failed(name, "attaching"))?,
    };
    // The filter belongs to the interface and outlives the agent: nothing here may detach it when dropped.
    let link = program.take_link(id).map_err(failed(name, "keeping its link"))?;
    std::mem::forget(link);
    Ok(())
}

/// Runs the verdict alone.
pub(super) fn judge(ebpf: &mut Ebpf, question: &Question) -> Result<Answer, CaptureError> {
    let program = classifier(ebpf, JUDGE)?;
    let mut packet = [0u8; 64];
    let (size, answer_size) = (size_of::<Question>(), size_of::<Answer>());
    packet[..size].copy_from_slice(&question.to_bytes());
    let mut out = [0u8; 64];
    let options =
        TestRunOptions { data_in: Some(&packet), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = program.test_run(options).map_err(|error| CaptureError::NoVerdict(error.to_string()))?;
    if result.return_value != 0 {
        return Err(CaptureError::NoVerdict(format!("the program returned {}", result.return_value)));
    }
    Answer::from_bytes(&out[..answer_size]).ok_or_else(|| CaptureError::NoVerdict("a short answer".into()))
}

/// Puts `program` behind the link pinned at `pin`; `false` if there is none that still leads anywhere.
fn replaced(pin: &Path, program: BorrowedFd<'_>) -> Result<bool, CaptureError> {
    let Ok(link) = syscalls::open_pin(pin) else {
        return Ok(false);
    };
    match syscalls::update_link(link.as_fd(), program) {
        Ok(()) => Ok(true),
        // Its cgroup, namespace or interface is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            std::fs::remove_file(pin).map_err(CaptureError::path("removing", pin))?;
            Ok(false)
        }
        Err(error) => Err(CaptureError::path("replacing the program behind", pin)(error)),
    }
}

fn pinned(name: &'static str, link: FdLink, pin: &Path) -> Result<(), CaptureError> {
    link.pin(pin).map(drop).map_err(|error| CaptureError::Program {
        program: name,
        what: "pinning its link",
        source: Box::new(ProgramError::IOError(std::io::Error::other(error))),
    })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, CaptureError> {
    ebpf.program_mut(name).ok_or_else(|| CaptureError::Missing(format!("program {name}")))
}

fn lookup(ebpf: &mut Ebpf) -> Result<&mut SkLookup, CaptureError> {
    program(ebpf, LOOKUP)?.try_into().map_err(failed(LOOKUP, "finding"))
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, CaptureError> {
    program(ebpf, name)?.try_into().map_err(failed(name, "finding"))
}

fn failed(program: &'static str, what: &'static str) -> impl FnOnce(ProgramError) -> CaptureError {
    move |source| CaptureError::Program { program, what, source: Box::new(source) }
}

fn no_link(program: &'static str) -> CaptureError {
    CaptureError::Missing(format!("a link of {program} that can be pinned"))
}
