//! A connection to an application, on its way into the pod.

use std::{net::SocketAddr, sync::Arc};

use heddle_ebpf::codes::{Hook, Reason};
use rustls::ServerConfig;
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{
    application,
    copy::{Copy, CopyEnd},
    environment::{Decision, Ending, Flow, InboundClass, PeerName, Proven, Refusal, Standing},
    handshake::{self, Established, First, HandshakeError},
    outbound::copied,
    probe,
    registry::{Membership, Told},
    relay::{Account, End, How, Relay, Side, Surroundings},
    secure::{Secure, SecureError},
    sockets::{abort, keep_alive, reset_unless_released},
    turns::{Cost, Step, Turn},
    wire::{self, Event, Open},
    worker::{Held, Pod, Worker},
};

/// Judges the connection, and carries it or resets it.
pub async fn serve(worker: &Worker, pod: &Pod, stream: TcpStream, flow: Flow) {
    let member = worker.registry.enter(pod.id);
    keep_alive(&stream);
    let policy = &*worker.environment.policy;
    let path = Path { worker, pod, member: &member, transport: flow.client };
    let class = policy.inbound_class(pod.id, flow.client.ip(), flow.destination.port());
    // The kubelet is at no meshed address.
    if !matches!(class, Ok(InboundClass::MeshTls | InboundClass::Either))
        && worker.environment.sockets.take_probe(pod.id, flow.destination, flow.client)
    {
        let checks = policy.probes(pod.id, flow.destination.ip(), flow.destination.port());
        // Where the rules let the node in anyway, its kubelet may ask for more than its probes.
        if !checks.is_empty() && (class.is_err() || path.authorize(&flow).is_err()) {
            return Box::pin(probe::serve(worker, pod, &member, stream, flow, &checks)).await;
        }
    }
    match class {
        Ok(InboundClass::MeshTls) => {
            member.set_deadline(Some(worker.settings.handshake_timeout));
            path.mesh(stream, flow, Vec::new()).await
        }
        Ok(InboundClass::Plain { server_first: true }) => path.plain(stream, flow, Vec::new()).await,
        Ok(InboundClass::Either | InboundClass::Plain { server_first: false }) => {
            let own = worker.environment.credentials.server(pod.id).map(|credentials| credentials.own);
            match Box::pin(path.first_bytes(&stream, own.as_ref())).await {
                Ok(First::Mesh(bytes)) => path.mesh(stream, flow, bytes).await,
                Ok(First::Other(bytes)) => path.plain(stream, flow, bytes).await,
                Err(reason) => worker.refuse(&flow, &Refusal::new(reason), stream),
            }
        }
        Err(refusal) => worker.refuse(&flow, &refusal, stream),
    }
}

struct Path<'a> {
    worker: &'a Worker,
    pod: &'a Pod,
    member: &'a Membership,
    /// The other end of the connection.
    transport: SocketAddr,
}

impl Path<'_> {
    fn authorize(&self, flow: &Flow) -> Result<Arc<str>, Refusal> {
        let policy = &self.worker.environment.policy;
        let Decision { allowed, reason, rule } =
            policy.authorize(self.pod.id, flow.destination.port(), flow.peer.as_ref(), flow.client.ip());
        if allowed { Ok(rule) } else { Err(Refusal::by(reason, rule)) }
    }

    /// Room for a handshake, while this is held.
    fn handshake(&self) -> Result<(Held, Held), Refusal> {
        self.worker.handshake(self.pod, Some(self.transport.ip()))
    }

    fn around<'a>(&'a self, judge: &'a dyn Fn() -> Result<(), Refusal>) -> Surroundings<'a> {
        Surroundings {
            member: self.member,
            supply: &self.pod.supply,
            share: &self.pod.share,
            judge,
            settle_timeout: self.worker.settings.settle_timeout,
            polling: &self.worker.polling,
        }
    }

    /// What the client begins with. Silence is no error: such a client waits for the server. It has no handshake under
    /// way, and takes the room of none. One that begins a handshake has its deadline from its first byte on.
    async fn first_bytes(&self, stream: &TcpStream, own: Option<&PeerName>) -> Result<First, Reason> {
        let settings = &self.worker.settings;
        self.member.set_deadline(Some(settings.first_byte_timeout));
        // Readiness alone may be a false alarm.
        match self.member.unless_told(stream.peek(&mut [0; 1])).await {
            Ok(Ok(1..)) => {}
            // It sends nothing and may still want to hear.
            Ok(Ok(0)) => return Ok(First::Other(Vec::new())),
            Ok(Err(_)) => return Err(Reason::Unreachable),
            Err(Told::TimedOut) => {
                self.member.set_deadline(None);
                return Ok(First::Other(Vec::new()));
            }
            Err(Told::Ended | Told::Draining) => return Err(Reason::AgentGone),
        }
        let _room = self.handshake().map_err(|refusal| refusal.reason)?;
        self.member.set_deadline(Some(settings.handshake_timeout));
        let result = self.member.unless_told(handshake::first_bytes(stream, own)).await;
        if !matches!(result, Ok(Ok(First::Mesh(_)))) {
            self.member.set_deadline(None);
        }
        match result {
            Ok(Ok(first)) => Ok(first),
            Ok(Err(_)) => Err(Reason::TlsFailed),
            Err(Told::TimedOut) => Err(Reason::TimedOut),
            Err(Told::Ended | Told::Draining) => Err(Reason::AgentGone),
        }
    }

    async fn plain(&self, mut client: TcpStream, mut flow: Flow, received: Vec<u8>) {
        let recorder = &*self.worker.environment.recorder;
        flow.rule = match self.authorize(&flow) {
            Ok(rule) => rule,
            Err(refusal) => return self.worker.refuse(&flow, &refusal, client),
        };
        let mut server = match application::connect(self.worker, self.pod, self.member, &flow).await {
            Ok(server) => server,
            Err(reason) => return self.worker.refuse(&flow, &Refusal::new(reason), client),
        };
        reset_unless_released(&client);
        let mut carried = recorder.opened(&flow);
        let judge = || self.authorize(&flow).map(drop);
        let end = {
            let account = Account::new(&*carried);
            let mut copy = Copy::new(&mut client, &mut server, self.around(&judge), account);
            match self.member.unless_told(std::future::poll_fn(|cx| copy.poll_preload(&received, cx))).await {
                Ok(()) => {
                    drop(received);
                    std::future::poll_fn(|cx| copy.poll(cx)).await
                }
                Err(_) => CopyEnd::Told,
            }
        };
        let ending = copied(end, client, server);
        carried.closed(&flow, &ending);
    }

    /// The mesh's TLS: streams, one after the other, until the client's agent closes.
    async fn mesh(&self, stream: TcpStream, mut flow: Flow, received: Vec<u8>) {
        // On the heap for as long as it takes: the connection's own future stays small.
        let (Established { tls, control, mut behind, peer }, made_with) =
            match Box::pin(self.establish(&stream, received)).await {
                Ok(established) => established,
                Err(refusal) => return self.worker.refuse(&flow, &refusal, stream),
            };
        let Proven { name, standing } = peer;
        flow.peer = Some(name);
        let wire = wire::Connection::new(wire::Role::Server);
        // On the heap, so that it is not copied from future to future.
        let mut secure = Box::new(Secure::new(stream, tls, wire, control));
        let supply = &self.pod.supply;
        let preloaded = std::future::poll_fn(|cx| secure.poll_preload(&mut behind, supply, cx));
        if self.member.unless_told(preloaded).await.is_err() {
            return abort(secure.stream);
        }
        loop {
            flow.client = self.transport;
            self.member.set_idle(true);
            let settings = &self.worker.settings;
            let retired = secure.wire.is_retired();
            let patience = if retired { settings.retire_timeout } else { settings.server_idle_timeout };
            self.member.set_deadline(Some(patience));
            let current = || standing.may_begin() && self.is_current(&made_with);
            let mut turn = Turn::new(&self.pod.share);
            let next = std::future::poll_fn(|cx| self.poll_open(&mut secure, &current, &mut turn, cx)).await;
            self.member.set_idle(false);
            self.member.set_deadline(None);
            let (open, peer_ended) = match next {
                Next::Open(open, peer_ended) => (open, peer_ended),
                Next::Retire => {
                    let retire = secure.wire.retire().map_err(SecureError::from);
                    match retire.and_then(|frame| secure.push_frame(&frame)) {
                        Ok(()) => continue,
                        Err(error) => {
                            tracing::warn!(%error, "RETIRE could not be sent");
                            return abort(secure.stream);
                        }
                    }
                }
                Next::Close => return Box::pin(self.linger(secure.close_writing())).await,
                Next::Broken(error) => {
                    tracing::debug!(%error, client = %self.transport, "an agent's connection broke");
                    let reason = match error {
                        SecureError::Violation(_) => Some(Reason::BadPeer),
                        SecureError::Full => Some(Reason::LimitReached),
                        _ => None,
                    };
                    if let Some(reason) = reason {
                        let refusal = Refusal::new(reason).because(error);
                        self.worker.environment.recorder.refused(&flow, &refusal);
                    }
                    // The alert, if TLS has one.
                    drop(std::future::poll_fn(|cx| std::task::Poll::Ready(secure.flush(cx))).await);
                    return abort(secure.stream);
                }
            };
            let local = flow.destination;
            if open.client.ip() != self.transport.ip() || open.destination != local {
                // The far agent claims to be somewhere else, or to have dialled something else.
                self.worker.environment.recorder.refused(&flow, &Refusal::new(Reason::BadPeer));
                return abort(secure.stream);
            }
            flow.client = open.client;
            if !self.stream(&mut secure, &mut flow, &*standing, peer_ended).await {
                return abort(secure.stream);
            }
        }
    }

    /// Whether the pod still shows the certificate that a connection was made with.
    fn is_current(&self, made_with: &Arc<ServerConfig>) -> bool {
        let current = self.worker.environment.credentials.server(self.pod.id);
        current.is_some_and(|current| Arc::ptr_eq(&current.config, made_with))
    }

    /// Whether a stream may begin: both sides have certificates that are valid, and the rules allow it.
    fn judge_opening(&self, flow: &Flow, standing: &dyn Standing) -> Result<Arc<str>, Refusal> {
        if !standing.may_begin() {
            return Err(Refusal::new(Reason::Revoked));
        }
        if self.worker.environment.credentials.server(self.pod.id).is_none() {
            return Err(Refusal::new(Reason::NoCertificate));
        }
        self.authorize(flow)
    }

    /// The handshake, within the deadline that the connection has.
    async fn establish(
        &self,
        stream: &TcpStream,
        received: Vec<u8>,
    ) -> Result<(Established, Arc<ServerConfig>), Refusal> {
        let environment = &self.worker.environment;
        let credentials = environment.credentials.server(self.pod.id).ok_or(Reason::NoCertificate)?;
        if received.is_empty() {
            // As long as it is silent it takes the room of no handshake.
            match self.member.unless_told(stream.peek(&mut [0; 1])).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) => return Err(Reason::TlsFailed.into()),
                Err(Told::TimedOut) => return Err(Reason::TimedOut.into()),
                Err(Told::Ended | Told::Draining) => return Err(Reason::AgentGone.into()),
            }
        }
        let _room = self.handshake()?;
        let handshake = async {
            self.pod.share.turn(Cost::Handshake).await;
            handshake::accept(stream, &credentials, &*environment.credentials, received).await
        };
        let result = self.member.unless_told(handshake).await;
        self.member.set_deadline(None);
        match result {
            Ok(Ok(established)) => {
                environment.recorder.handshake(Hook::Inbound, self.pod.id);
                Ok((established, credentials.config))
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no TLS with a client");
                let reason = match error {
                    HandshakeError::Identity { .. } => Reason::NoIdentity,
                    _ => Reason::TlsFailed,
                };
                Err(Refusal::new(reason).because(error))
            }
            Err(Told::TimedOut) => Err(Reason::TimedOut.into()),
            Err(Told::Ended | Told::Draining) => Err(Reason::AgentGone.into()),
        }
    }

    /// Waits until the client has closed as well: to close with something unread would be a reset, which may overtake the
    /// alert.
    async fn linger(&self, mut stream: TcpStream) {
        self.member.set_deadline(Some(self.worker.settings.settle_timeout));
        let mut sink = [0; 1024];
        let drained = async {
            while stream.read(&mut sink).await? > 0 {}
            std::io::Result::Ok(())
        };
        // Whatever ends it, there is nothing left to do.
        drop(self.member.unless_told(drained).await);
    }

    /// Waits for the next OPEN. `current`: the connection may carry others after it.
    ///
    /// A server never closes a connection on which an OPEN may be under way: it says RETIRE, serves the stream that crossed
    /// it, and waits for the client to close.
    fn poll_open(
        &self,
        secure: &mut Secure,
        current: &dyn Fn() -> bool,
        turn: &mut Turn,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Next> {
        use std::task::Poll;
        let retired = secure.wire.is_retired();
        loop {
            match self.member.poll_told(cx) {
                Poll::Ready(Told::TimedOut | Told::Draining) if !retired => return Poll::Ready(Next::Retire),
                // The client has been told already; the deadline ends the wait for it.
                Poll::Ready(Told::Draining) => {}
                Poll::Ready(Told::TimedOut | Told::Ended) => return Poll::Ready(Next::Close),
                Poll::Pending => break,
            }
        }
        // Nothing is under way between streams that new rules could concern; each OPEN is judged. But after a renewal the
        // client's agent is to make another connection.
        let _ = self.member.must_judge_again();
        if !retired && !current() {
            return Poll::Ready(Next::Retire);
        }
        turn.poll_steps(cx, |cx| {
            if let Err(error) = secure.flush(cx) {
                return Step::Done(Next::Broken(error));
            }
            let mut opened = None;
            let mut ended = false;
            let result = secure.open_records(&mut |event, _| {
                match event {
                    Event::Opened(open) => opened = Some(open),
                    Event::Ended => ended = true,
                    _ => {}
                }
                true
            });
            let progress = match result {
                Err(error) => return Step::Done(Next::Broken(error)),
                Ok(progress) => progress,
            };
            if let Some(open) = opened {
                return Step::Done(Next::Open(open, ended));
            }
            if progress {
                return Step::More(secure.take_work());
            }
            if secure.closed().is_some() {
                return Step::Done(Next::Close);
            }
            self.read_on(secure, cx).unwrap_or_else(|error| Step::Done(Next::Broken(error)))
        })
    }

    /// Reads more records where no stream is carried, or gives back what it held.
    fn read_on<T>(
        &self,
        secure: &mut Secure,
        cx: &mut std::task::Context<'_>,
    ) -> Result<Step<T>, SecureError> {
        if secure.read_records(&self.pod.supply, None, cx)? {
            return Ok(Step::More(Cost::Look as u64));
        }
        secure.release(&self.pod.supply, false)?;
        Ok(Step::Wait)
    }

    /// Connects to the application when it is the pod's turn.
    async fn reach(&self, flow: &Flow) -> Result<TcpStream, Reason> {
        let turn = self.member.unless_told(self.pod.share.turn(Cost::Connection));
        turn.await.map_err(|_| Reason::AgentGone)?;
        application::connect(self.worker, self.pod, self.member, flow).await
    }

    /// Carries one stream; whether the connection may carry another.
    async fn stream(
        &self,
        secure: &mut Secure,
        flow: &mut Flow,
        standing: &dyn Standing,
        peer_ended: bool,
    ) -> bool {
        let recorder = &*self.worker.environment.recorder;
        let app = match self.judge_opening(flow, standing) {
            Ok(rule) => {
                flow.rule = rule;
                secure.set_aside(&self.pod.supply);
                Box::pin(self.reach(flow)).await.map_err(Refusal::new)
            }
            Err(refusal) => Err(refusal),
        };
        let app = match app {
            Ok(app) => app,
            Err(refusal) => {
                recorder.refused(flow, &refusal);
                return self.refuse(secure, refusal.reason).await;
            }
        };
        let accepted = secure.wire.accept().map_err(SecureError::from);
        if let Err(error) = accepted.and_then(|frame| secure.push_frame(&frame)) {
            // The client has given the stream up already.
            tracing::debug!(%error, "the stream was not accepted");
            abort(app);
            return self.refuse(secure, Reason::Unreachable).await;
        }
        let mut carried = recorder.opened(flow);
        let judge = || standing.judge().and_then(|()| self.authorize(flow).map(drop));
        let account = Account::new(&*carried);
        let mut relay = Relay::new(secure, app, self.around(&judge), account, Side::Server, peer_ended);
        let end = std::future::poll_fn(|cx| relay.poll(cx)).await;
        let (ending, whole) = match end {
            // A peer that is no longer believed opens no other stream.
            End::Over(how) => (ended(how), standing.holds()),
            End::Unsettled(how) => (ended(how), false),
            End::Lost(error) => {
                tracing::debug!(%error, client = %flow.client, "an agent's connection broke within a stream");
                (Ending::Lost, false)
            }
            End::Told(told) => (if told == Told::TimedOut { Ending::Lost } else { Ending::Detached }, false),
        };
        drop(relay);
        carried.closed(flow, &ending);
        whole
    }

    /// Refuses the stream and waits until the client has heard; whether the connection may carry another.
    async fn refuse(&self, secure: &mut Secure, reason: Reason) -> bool {
        secure.discard_plain();
        if let Some(frame) = secure.wire.reset(reason as u32)
            && secure.push_frame(&frame).is_err()
        {
            return false;
        }
        self.member.set_deadline(Some(self.worker.settings.settle_timeout));
        let mut turn = Turn::new(&self.pod.share);
        std::future::poll_fn(|cx| self.poll_settled(secure, &mut turn, cx)).await
    }

    fn poll_settled(
        &self,
        secure: &mut Secure,
        turn: &mut Turn,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<bool> {
        use std::task::Poll;
        if self.member.poll_told(cx).is_ready() {
            return Poll::Ready(false);
        }
        turn.poll_steps(cx, |cx| {
            if secure.flush(cx).is_err() {
                return Step::Done(false);
            }
            if secure.wire.is_idle() {
                return if secure.is_flushed() { Step::Done(true) } else { Step::Wait };
            }
            let opened = secure.open_records(&mut |_, wire| !wire.is_idle());
            match opened {
                Err(_) => Step::Done(false),
                Ok(true) => Step::More(secure.take_work()),
                Ok(false) if secure.closed().is_some() => Step::Done(false),
                Ok(false) => self.read_on(secure, cx).unwrap_or(Step::Done(false)),
            }
        })
    }
}

fn ended(how: How) -> Ending {
    match how {
        How::Closed => Ending::Closed,
        How::Terminated(refusal) => Ending::Terminated(refusal),
        How::Reset | How::Refused(_) => Ending::Reset,
    }
}

enum Next {
    /// A stream; whether its client has ended already.
    Open(Open, bool),
    /// The client's agent is to close the connection: it was idle for long, this agent stops, or it rests on what is gone.
    Retire,
    /// The client's agent closed or does not, or the pod is gone.
    Close,
    /// The connection broke.
    Broken(SecureError),
}
