//! Maps that aya-ebpf has no type for: socket storage that children inherit, and a trie with a key of our own.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE},
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_storage_get},
};

/// `BPF_MAP_TYPE_SK_STORAGE`.
const SK_STORAGE: usize = 24;
/// `BPF_MAP_TYPE_LPM_TRIE`.
const LPM_TRIE: usize = 11;

/// Flags of storage that stays with its socket.
pub const OWN: usize = BPF_F_NO_PREALLOC as usize;
/// Flags of storage that the children of a listening socket inherit.
pub const INHERITED: usize = (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize;

/// Socket storage as BTF describes it to the loader.
#[repr(C)]
pub struct SkStorage<T, const FLAGS: usize> {
    r#type: *const [i32; SK_STORAGE],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are placeholders for the loader and never read.
unsafe impl<T, const FLAGS: usize> Sync for SkStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SkStorage<T, FLAGS> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// The value on `socket`, a full socket that is not null.
    #[inline(always)]
    #[allow(
        clippy::mut_from_ref,
        reason = "the value is the socket's, not the map's; two processors may hold it"
    )]
    pub fn get(&self, socket: *mut c_void) -> Option<&mut T> {
        // SAFETY: the helper returns null or a value of the map's type that lives as long as the program runs.
        unsafe { bpf_sk_storage_get(self.as_ptr(), socket, ptr::null_mut(), 0).cast::<T>().as_mut() }
    }

    /// Puts `value` on `socket`; `false` when there is no memory for it.
    #[inline(always)]
    pub fn set(&self, socket: *mut c_void, value: &T) -> bool
    where
        T: Copy,
    {
        // SAFETY: as in `get`; `value` is read by the helper only when it makes the entry.
        let slot = unsafe {
            bpf_sk_storage_get(
                self.as_ptr(),
                socket,
                ptr::from_ref(value).cast_mut().cast(),
                BPF_SK_STORAGE_GET_F_CREATE.into(),
            )
            .cast::<T>()
            .as_mut()
        };
        match slot {
            Some(slot) => {
                // An assignment would be a call that moves byte after byte.
                // SAFETY: the value on the stack and the one in the map do not overlap.
                unsafe { ptr::copy_nonoverlapping(value, slot, 1) };
                true
            }
            None => false,
        }
    }
}

/// A longest-prefix-match trie whose key is laid out by `heddle-ebpf`.
#[repr(C)]
pub struct Trie<K, V, const MAX_ENTRIES: usize> {
    r#type: *const [i32; LPM_TRIE],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; MAX_ENTRIES],
    map_flags: *const [i32; OWN],
}

// SAFETY: the fields are placeholders for the loader and never read.
unsafe impl<K, V, const MAX_ENTRIES: usize> Sync for Trie<K, V, MAX_ENTRIES> {}

impl<K, V, const MAX_ENTRIES: usize> Trie<K, V, MAX_ENTRIES> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The entry with the longest prefix of `key`.
    #[inline(always)]
    pub fn get(&self, key: &K) -> Option<&V> {
        // SAFETY: the helper returns null or a value of the map's type that lives as long as the program runs.
        unsafe {
            bpf_map_lookup_elem(ptr::from_ref(self).cast_mut().cast(), ptr::from_ref(key).cast_mut().cast())
                .cast::<V>()
                .as_ref()
        }
    }
}
