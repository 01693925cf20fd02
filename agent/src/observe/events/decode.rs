//! The kernel's event, from bytes: field by field in the order of [`heddle_ebpf::flows::Event`].
//! Nothing stands between the fields (a test holds that against the layout); what follows the last is not read.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_ebpf::{
    Address,
    codes::{Hook, Outcome, Reason},
    flows::Event,
};

use super::super::record::{Names, Occurrence};

/// Why bytes are no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Another number of bytes than an event has.
    Length(usize),
    /// An unknown [`Hook`].
    Hook(u32),
    /// An unknown [`Outcome`].
    Outcome(u32),
    /// An unknown [`Reason`].
    Reason(u32),
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length(length) => {
                write!(f, "an event of {length} bytes instead of {}", size_of::<Event>())
            }
            Self::Hook(code) => write!(f, "an event of the unknown hook {code}"),
            Self::Outcome(code) => write!(f, "an event with the unknown outcome {code}"),
            Self::Reason(code) => write!(f, "an event with the unknown reason {code}"),
        }
    }
}

impl std::error::Error for Malformed {}

/// When the clock of the kernel's events was zero, as far as the two clocks tell now.
pub fn monotonic_epoch() -> SystemTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let since = Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0));
    SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Reads an event that the kernel programs wrote.
///
/// # Errors
/// Another length or unknown codes: written by programs of another schema, or not by ours.
pub fn decode(bytes: &[u8], epoch: SystemTime, names: &dyn Names) -> Result<Occurrence, Malformed> {
    if bytes.len() != size_of::<Event>() {
        return Err(Malformed::Length(bytes.len()));
    }
    let mut fields = Fields(bytes);
    let (time_ns, netns, generation) = (fields.u64(), fields.u64(), fields.u64());
    let (source, destination) = (fields.address(), fields.address());
    let (source_port, destination_port) = (fields.u16(), fields.u16());
    let (hook, outcome, reason, rule) = (fields.u32(), fields.u32(), fields.u32(), fields.u32());
    let (protocol, detail, length) = (fields.u32(), fields.u32(), fields.u32());
    let command: [u8; 16] = fields.take();
    let pid = fields.u32();
    Ok(Occurrence {
        time: epoch.checked_add(Duration::from_nanos(time_ns)).unwrap_or(epoch),
        hook: Hook::from_code(hook).ok_or(Malformed::Hook(hook))?,
        outcome: outcome_from_code(outcome).ok_or(Malformed::Outcome(outcome))?,
        reason: Reason::from_code(reason).ok_or(Malformed::Reason(reason))?,
        rule: if rule == 0 {
            None
        } else {
            Some(names.rule(generation, rule).unwrap_or_else(|| Arc::from(format!("rule {rule}"))))
        },
        generation,
        pod: if netns == 0 { None } else { names.pod(netns) },
        source: SocketAddr::new(source.to_ip(), source_port),
        destination: SocketAddr::new(destination.to_ip(), destination_port),
        protocol,
        detail,
        length,
        command: printable(&command),
        pid: (pid != 0).then_some(pid),
        source_identity: None,
        destination_identity: None,
        because: None,
    })
}

/// The text up to the first zero byte. A process gives itself its name: what a terminal would obey becomes `?`.
fn printable(bytes: &[u8]) -> Option<String> {
    let text: String = bytes
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' })
        .collect();
    (!text.is_empty()).then_some(text)
}

fn outcome_from_code(code: u32) -> Option<Outcome> {
    [Outcome::Direct, Outcome::Proxy, Outcome::Refuse].into_iter().find(|outcome| *outcome as u32 == code)
}

/// Takes fields off the front. The length was checked as a whole; what is not there reads as zero.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    fn address(&mut self) -> Address {
        Address { bytes: self.take() }
    }
}
