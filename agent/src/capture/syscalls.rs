//! The system calls that no library offers safely. The only unsafe code of the agent.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

use aya::{Pod as Plain, maps::MapData};

/// `BPF_OBJ_GET`.
const BPF_OBJ_GET: libc::c_int = 7;
/// `BPF_LINK_UPDATE`.
const BPF_LINK_UPDATE: libc::c_int = 29;
/// `SO_NETNS_COOKIE`, since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Opens a pinned object of any kind.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the attribute and the string outlive the call; the size is the attribute's own.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<ObjGet>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a file descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Puts another program behind a link, at once.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the attribute outlives the call; the size is its own.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const attr, size_of::<LinkUpdate>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `BPF_OBJ_GET_INFO_BY_FD`.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_link_info`: for cgroup, netns and tcx links the word behind it is the id, inode or index of
/// what the link is attached to, 0 when that is gone.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    target: [u64; 16],
}

/// Whether what a link was attached to is still there.
pub(super) fn link_leads_somewhere(link: BorrowedFd<'_>) -> bool {
    let mut info = LinkInfo::default();
    let attr = GetInfo {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<LinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attribute and the buffer, of the size that it names, outlive the call.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attr, size_of::<GetInfo>())
    };
    // Only the first word: behind it comes the attach type.
    done >= 0 && info.target[0] as u32 != 0
}

/// `BPF_MAP_LOOKUP_BATCH`, since Linux 5.6.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

#[repr(C)]
struct LookupBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads whole buckets of a hash map from bucket `from` on, appends their rows and returns the bucket to go on from;
/// none: that was the last.
///
/// # Errors
/// `ENOSPC` where `room` rows are less than one bucket holds; else when the kernel refuses.
pub(super) fn look_up_batch<K: Plain, V: Plain>(
    map: &MapData,
    from: Option<u32>,
    room: u32,
    rows: &mut Vec<(K, V)>,
) -> io::Result<Option<u32>> {
    let info = map.info().map_err(io::Error::other)?;
    if (info.key_size() as usize, info.value_size() as usize) != (size_of::<K>(), size_of::<V>()) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut keys = Vec::<K>::with_capacity(room as usize);
    let mut values = Vec::<V>::with_capacity(room as usize);
    let (from, mut next) = (from.as_ref(), 0u32);
    let mut attr = LookupBatch {
        in_batch: from.map_or(0, |from| std::ptr::from_ref(from) as u64),
        out_batch: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room,
        map_fd: map.fd().as_fd().as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: all that the attribute names outlives the call, and has room for as many rows as it says: the map's own sizes
    // are those of the types.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<LookupBatch>())
    };
    let last = if done < 0 {
        let error = io::Error::last_os_error();
        // No bucket is left; what the others held has come all the same.
        if error.raw_os_error() != Some(libc::ENOENT) {
            return Err(error);
        }
        true
    } else {
        false
    };
    let count = attr.count.min(room) as usize;
    // SAFETY: the kernel has written so many, and any bytes are a value of either type.
    unsafe {
        keys.set_len(count);
        values.set_len(count);
    }
    rows.extend(keys.into_iter().zip(values));
    Ok((!last).then_some(next))
}

/// The cookie of the network namespace that a socket is in; of an accepted unix socket: that the caller's was made in.
///
/// # Errors
/// When the kernel refuses.
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value and its length outlive the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Moves the calling thread into a new network namespace.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: no pointers; no other thread's namespace, files or memory are touched.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `BPF_MAP_CREATE`.
const BPF_MAP_CREATE: libc::c_int = 0;
/// `BPF_MAP_UPDATE_ELEM`.
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
/// `BPF_MAP_TYPE_ARRAY`.
const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Makes a map of one row.
fn create_map(map_type: u32, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let inner_map_fd = inner.map_or(0, |inner| inner.as_raw_fd() as u32);
    let attr = MapCreate { map_type, key_size: 4, value_size: 4, max_entries: 1, map_flags: 0, inner_map_fd };
    // SAFETY: the attribute outlives the call; the size is its own.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attr, size_of::<MapCreate>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a file descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits for programs: an array of maps, which no program reads. Whoever writes a map into one gets the answer after a
/// grace period of RCU, when each program that ran has ended; save those that may sleep, and none of ours may.
///
/// `MEMBARRIER_CMD_GLOBAL` does as much, but nothing where a processor runs without ticks (`nohz_full`: EINVAL), and does
/// not wait where there is one processor alone, on which a program may have been preempted.
pub(super) struct GracePeriod {
    array: OwnedFd,
    map: OwnedFd,
}

impl GracePeriod {
    /// Makes what is waited with: from here on nothing has to be found room for.
    pub(super) fn new() -> io::Result<Self> {
        let map = create_map(BPF_MAP_TYPE_ARRAY, None)?;
        Ok(Self { array: create_map(BPF_MAP_TYPE_ARRAY_OF_MAPS, Some(map.as_fd()))?, map })
    }

    /// Waits until every program that runs now has ended.
    pub(super) fn wait(&self) -> io::Result<()> {
        let (row, map) = (0u32, self.map.as_raw_fd() as u32);
        let attr = MapUpdate {
            map_fd: self.array.as_raw_fd() as u32,
            pad: 0,
            key: (&raw const row) as u64,
            value: (&raw const map) as u64,
            flags: 0,
        };
        // SAFETY: the attribute, and the key and the value of four bytes each that it names, outlive the call.
        let done = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw const attr, size_of::<MapUpdate>())
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Waits until every program that runs now has ended.
pub(super) fn grace_period() -> io::Result<()> {
    GracePeriod::new()?.wait()
}

/// Lets `connect()` choose the port of a bound socket, so that many connections may share one source address.
pub(super) fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the allocator give memory back to the system as soon as 128 KiB of it are free at the heap's end. By itself it
/// raises that bound to whatever was freed last, and keeps for ever what the start took to read manifests and the
/// kernel's types.
pub fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes a number of the allocator's, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
    }
}

/// Gives the allocator's free pages back to the system, those between used ones too.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches nothing but what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the program's own text and constants, of which the start needs ten times what an idle agent does. What is
/// used again is mapped again, out of the page cache.
pub fn let_go_of_text() {
    // SAFETY: the callback has the signature that is asked for, and the list of what is loaded is locked meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(let_go_of_program), std::ptr::null_mut()) };
}

/// Of the first that is loaded, which is the program itself.
unsafe extern "C" fn let_go_of_program(
    loaded: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the linker hands in what it has loaded, with as many headers as it says.
    let (base, headers) = unsafe {
        let loaded = &*loaded;
        (loaded.dlpi_addr, std::slice::from_raw_parts(loaded.dlpi_phdr, usize::from(loaded.dlpi_phnum)))
    };
    // SAFETY: asks for a number.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    for header in headers.iter().filter(|it| it.p_type == libc::PT_LOAD && it.p_flags & libc::PF_W == 0) {
        let first = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        let length = usize::try_from(end.saturating_sub(first)).unwrap_or(0);
        // SAFETY: whole pages of a file's private mapping that nobody may write to: each is as it is in the file, and is
        // read from there when it is touched. A kernel that refuses leaves them where they are.
        unsafe { libc::madvise(first as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing can be waited for on a kernel that does not have it, whatever processors do there.
    #[test]
    #[ignore = "needs root: cargo xtask test"]
    fn programs_are_waited_for_again_and_again() {
        let programs = GracePeriod::new().unwrap();
        for _ in 0..3 {
            programs.wait().unwrap();
        }
        grace_period().unwrap();
    }

    #[test]
    fn what_the_kernel_reads_has_its_layout() {
        use std::mem::offset_of;
        // `union bpf_attr` of linux/bpf.h, whose words of eight bytes are aligned to eight.
        assert_eq!((size_of::<MapCreate>(), offset_of!(MapCreate, inner_map_fd)), (24, 20));
        assert_eq!((offset_of!(MapUpdate, key), offset_of!(MapUpdate, value)), (8, 16));
        assert_eq!((size_of::<MapUpdate>(), offset_of!(MapUpdate, flags)), (32, 24));
    }

    /// Constants that nothing but its own test reads, so many that a page in their middle is not mapped beside another
    /// that is touched: what the kernel maps around a fault is 64 KiB.
    static CONSTANTS: [u8; 256 << 10] = [7; 256 << 10];

    #[test]
    fn constants_that_were_let_go_are_mapped_again_when_they_are_read() {
        use std::os::unix::fs::FileExt as _;

        let middle = &CONSTANTS[CONSTANTS.len() / 2];
        // A word of eight bytes for each page, whose highest bit says that it is there.
        let is_mapped = || {
            let page = std::ptr::from_ref(middle) as u64 / 4096;
            let mut word = [0; 8];
            std::fs::File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut word, page * 8).unwrap();
            u64::from_ne_bytes(word) >> 63 == 1
        };
        assert_eq!(std::hint::black_box(*std::hint::black_box(middle)), 7);
        assert!(is_mapped());
        let_go_of_text();
        assert!(!is_mapped());
        assert_eq!(std::hint::black_box(*std::hint::black_box(middle)), 7);
        assert!(is_mapped());
    }
}
