//! The verdict alone, for whoever asks by `BPF_PROG_TEST_RUN`: the packet is the question, then the answer.
//!
//! It is never attached. It is how a test, or a person with a question, hears what the kernel itself would say.

use aya_ebpf::{
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_release},
    macros::classifier,
    programs::TcContext,
};
use heddle_ebpf::{
    Address,
    codes::{Reason, Verdict},
    flows::Tuple,
    judge::{Answer, INBOUND, LIVE, OUTBOUND, Question, SLOT},
};
use heddle_policy::verdict::{Connect, Outbound};

use crate::{
    guard::judged,
    maps,
    tables::{KernelTables, Place, judge_inbound, judge_outbound},
};

const OK: i32 = 0;
const SHOT: i32 = 2;

/// Whether there is a socket of the agent's in a slot.
#[inline(always)]
fn slot(slot: u32) -> Verdict {
    let map = core::ptr::from_ref(&maps::LISTENERS).cast_mut().cast();
    // SAFETY: the helper returns null or a socket, which is released below.
    let socket = unsafe { bpf_map_lookup_elem(map, (&raw const slot).cast_mut().cast()) };
    if socket.is_null() {
        return Verdict::refuse(Reason::AgentGone, 0);
    }
    let own = maps::AGENT_MARKS.get(socket).is_some();
    // SAFETY: it is not used any more.
    unsafe { bpf_sk_release(socket) };
    if own { Verdict::direct(Reason::Agent, 0) } else { Verdict::refuse(Reason::UnmarkedSocket, 0) }
}

#[classifier]
pub fn heddle_judge(ctx: TcContext) -> i32 {
    let Ok(question) = ctx.load::<Question>(0) else {
        return SHOT;
    };
    let tables = KernelTables::current();
    let (verdict, destination, port): (Verdict, Address, u16) = match question.direction {
        OUTBOUND => {
            let asked = Connect {
                source: question.source,
                destination: question.destination,
                port: question.port as u16,
                protocol: question.protocol as u8,
                random: question.random,
            };
            let mut decided = Outbound {
                verdict: Verdict::refuse(Reason::TablesClosed, 0),
                destination: asked.destination,
                port: asked.port,
            };
            judge_outbound(&tables, &asked, &mut decided);
            (decided.verdict, decided.destination, decided.port)
        }
        INBOUND => {
            let mut verdict = Verdict::refuse(Reason::TablesClosed, 0);
            judge_inbound(
                &tables,
                &question.source,
                &question.destination,
                Place::new(question.port as u16, question.protocol as u8),
                &mut verdict,
            );
            (verdict, question.destination, question.port as u16)
        }
        LIVE => {
            let tuple = Tuple {
                source: question.source,
                destination: question.destination,
                source_port: 0,
                destination_port: question.port as u16,
            };
            (judged(&tables, &tuple, question.protocol as u8), question.destination, question.port as u16)
        }
        SLOT => (slot(question.port), question.destination, 0),
        _ => return SHOT,
    };
    let answer = Answer {
        generation: tables.generation(),
        destination,
        outcome: verdict.outcome as u32,
        reason: verdict.reason as u32,
        rule: verdict.rule,
        port: u32::from(port),
    };
    if ctx.store(0, &answer, 0).is_err() { SHOT } else { OK }
}
