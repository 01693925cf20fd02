//! The verdict alone, for whoever asks by `BPF_PROG_TEST_RUN`: the packet is the question, then the answer.
//!
//! It is never attached. It is how a test, or a person with a question, hears what the kernel itself would say.

use aya_ebpf::{macros::classifier, programs::TcContext};
use heddle_ebpf::{
    Address,
    codes::{Reason, Verdict},
    judge::{Answer, INBOUND, OUTBOUND, Question},
};
use heddle_policy::verdict::{Connect, Outbound};

use crate::tables::{KernelTables, judge_inbound, judge_outbound};

const OK: i32 = 0;
const SHOT: i32 = 2;

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
                question.port as u16,
                &mut verdict,
            );
            (verdict, question.destination, question.port as u16)
        }
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
