//! Counting every decision and telling every refusal.

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
};
use heddle_ebpf::{
    codes::{Hook, Outcome, Verdict},
    flows::{Count, CounterKey, Event, Tuple},
};

use crate::maps;

/// What a report is about.
pub struct Subject<'a> {
    pub hook: Hook,
    pub netns: u64,
    pub generation: u64,
    pub tuple: &'a Tuple,
    pub protocol: u32,
    pub detail: u32,
    pub length: u32,
    /// Whether the program runs in the process that the report is about.
    pub in_process: bool,
}

/// Counts `verdict`, and sends an event if it refuses.
#[inline(never)]
pub fn report(subject: &Subject<'_>, verdict: &Verdict) {
    count(subject.netns, subject.hook, verdict, subject.length);
    if verdict.outcome == Outcome::Refuse {
        tell(subject, verdict);
    }
}

/// Adds one to the decision's counter.
#[inline(always)]
pub fn count(netns: u64, hook: Hook, verdict: &Verdict, bytes: u32) {
    let key = CounterKey {
        netns,
        hook: hook as u32,
        outcome: verdict.outcome as u32,
        reason: verdict.reason as u32,
        pad: 0,
    };
    if let Some(count) = maps::COUNTERS.get_ptr_mut(&key) {
        // SAFETY: a value of this CPU's own, which nothing else writes while the program runs.
        unsafe {
            (*count).count += 1;
            (*count).bytes += u64::from(bytes);
        }
        return;
    }
    // A full map loses a counter, never a decision.
    let _ = maps::COUNTERS.insert(&key, &Count { count: 1, bytes: u64::from(bytes) }, BPF_ANY.into());
}

#[inline(always)]
fn tell(subject: &Subject<'_>, verdict: &Verdict) {
    let Some(mut entry) = maps::EVENTS.reserve_untyped::<Event>(0) else {
        return;
    };
    let (pid, command) = if subject.in_process {
        let comm = bpf_get_current_comm().unwrap_or([0; 16]);
        // SAFETY: bytes to bytes of the same size.
        (((bpf_get_current_pid_tgid() >> 32) as u32), unsafe {
            core::mem::transmute::<[u8; 16], [i8; 16]>(comm)
        })
    } else {
        (0, [0; 16])
    };
    entry.write(Event {
        // SAFETY: a helper without conditions.
        time_ns: unsafe { bpf_ktime_get_ns() },
        netns: subject.netns,
        generation: subject.generation,
        tuple: *subject.tuple,
        hook: subject.hook as u32,
        outcome: verdict.outcome as u32,
        reason: verdict.reason as u32,
        rule: verdict.rule,
        protocol: subject.protocol,
        detail: subject.detail,
        length: subject.length,
        command,
        pid,
        pad: 0,
    });
    entry.submit(0);
}
