//! A health probe of this node's kubelet: it passes whatever the rules say, and nothing but the probe passes with it.
//!
//! What a probe may be is what the pod declares for the port. A TCP probe learns whether the port is open; an HTTP one
//! gets the answer to one GET of its path; a gRPC one the answer to one `grpc.health.v1.Health/Check`.

mod grpc;
mod http;

use std::{sync::Arc, time::Duration};

use heddle_ebpf::codes::Reason;
use heddle_policy::resources::Check;
use tokio::net::TcpStream;

use super::{
    application,
    environment::{Carried, Ending, Flow, Refusal},
    registry::{Membership, Told},
    relay::Account,
    worker::{Pod, Worker},
};

/// The authorization that probes are credited to, as Linkerd's metrics name it.
const RULE: &str = "default policy probe";

/// Carries the probe, or resets it.
pub async fn serve(
    worker: &Worker,
    pod: &Pod,
    member: &Membership,
    mut client: TcpStream,
    mut flow: Flow,
    checks: &[Check],
) {
    flow.rule = Arc::from(RULE);
    let probe = Probe { worker, pod, member, checks };
    if let Err(reason) = probe.carry(&mut client, &flow).await {
        worker.refuse(&flow, &Refusal::by(reason, Arc::clone(&flow.rule)), client);
    }
}

struct Probe<'a> {
    worker: &'a Worker,
    pod: &'a Pod,
    member: &'a Membership,
    checks: &'a [Check],
}

impl Probe<'_> {
    async fn carry(&self, client: &mut TcpStream, flow: &Flow) -> Result<(), Reason> {
        let settings = &self.worker.settings;
        let room = self.worker.handshake(self.pod, None).map_err(|refusal| refusal.reason)?;
        // Whoever asks whether the port is open must not wait until it says something.
        let open = match self.checks.contains(&Check::Tcp) {
            true => Some(self.reach(flow).await?),
            false => None,
        };
        let mut first = [0];
        let begun = self.within(settings.handshake_timeout, client.peek(&mut first)).await?;
        match (begun, first) {
            (Err(_), _) => Err(Reason::Unreachable),
            (Ok(0), _) => {
                if let Some(application) = open {
                    application.ended(Ok(()))?;
                }
                Ok(())
            }
            (Ok(_), [b'G']) if self.checks.iter().any(|check| matches!(check, Check::Http { .. })) => {
                let head = http::read_head(client, self.checks);
                let head = self.within(settings.handshake_timeout, head).await??;
                drop(room);
                let mut application = self.reach_unless(open, flow).await?;
                let Application { stream, told } = &mut application;
                let mut account = Account::new(&*told.carried);
                let work = http::answer(client, &head, stream, &mut account);
                let result = self.within(settings.probe_timeout, work).await;
                drop(account);
                application.ended(result.and_then(|result| result))
            }
            (Ok(_), [b'P']) if self.checks.iter().any(|check| matches!(check, Check::Grpc { .. })) => {
                let asked = grpc::read_check(client, self.checks);
                let asked = self.within(settings.handshake_timeout, asked).await??;
                drop(room);
                let mut application = self.reach_unless(open, flow).await?;
                let Application { stream, told } = &mut application;
                let mut account = Account::new(&*told.carried);
                let result = self.within(settings.probe_timeout, asked.answer(stream, &mut account)).await;
                drop(account);
                application.ended(result.and_then(|result| result))
            }
            _ => Err(Reason::NotTheProbe),
        }
    }

    async fn within<T>(&self, time: Duration, work: impl Future<Output = T>) -> Result<T, Reason> {
        self.member.set_deadline(Some(time));
        let result = self.member.unless_told(work).await;
        self.member.set_deadline(None);
        result.map_err(|told| match told {
            Told::TimedOut => Reason::TimedOut,
            Told::Ended | Told::Draining => Reason::AgentGone,
        })
    }

    async fn reach<'a>(&'a self, flow: &'a Flow) -> Result<Application<'a>, Reason> {
        let stream = application::connect(self.worker, self.pod, self.member, flow).await?;
        let carried = self.worker.environment.recorder.opened(flow);
        Ok(Application { stream, told: Opened { carried, flow, ending: Ending::Reset } })
    }

    async fn reach_unless<'a>(
        &'a self,
        open: Option<Application<'a>>,
        flow: &'a Flow,
    ) -> Result<Application<'a>, Reason> {
        match open {
            Some(application) => Ok(application),
            None => self.reach(flow).await,
        }
    }
}

/// The application, reached.
struct Application<'a> {
    stream: TcpStream,
    told: Opened<'a>,
}

impl Application<'_> {
    fn ended(mut self, result: Result<(), Reason>) -> Result<(), Reason> {
        if result.is_ok() {
            self.told.ending = Ending::Closed;
        }
        result
    }
}

/// A connection that was told of as open: its end is told whatever happens.
struct Opened<'a> {
    carried: Box<dyn Carried>,
    flow: &'a Flow,
    ending: Ending,
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.carried.closed(self.flow, &self.ending);
    }
}
