//! A connection of an application's, on its way out of the pod.

use std::{
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use heddle_ebpf::codes::{Hook, Reason};
use tokio::net::TcpStream;

use super::{
    copy::{Copy, CopyEnd},
    environment::{Carried, ClientCredentials, Ending, Flow, PeerName, Refusal, Upstream},
    handshake::{self, Established, HandshakeError},
    pool::{Made, PoolKey, Pooled},
    registry::{Membership, Told},
    relay::{Account, End, How, Kept, Relay, Side, Surroundings},
    secure::{Secure, SecureError},
    sockets::{abort, connected, keep_alive, release, reset_unless_released},
    turns::Cost,
    wire::{self, Open},
    worker::{Pod, Worker},
};

/// After a refusal, how long until a pod that has just started asks again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Carries the connection to wherever policy leads it.
pub async fn serve(worker: &Worker, pod: &Pod, stream: TcpStream, mut flow: Flow) {
    let environment = &worker.environment;
    // Its listener has it reset unless it is released.
    let member = worker.registry.enter(pod.id);
    let Some(asked) = environment.sockets.take_origin(pod.id, flow.destination, flow.client) else {
        return worker.refuse(&flow, &Refusal::new(Reason::NoOrigin), stream);
    };
    flow.destination = asked;
    let upstream = match environment.policy.resolve(pod.id, asked) {
        Ok(upstream) => upstream,
        Err(refusal) => return worker.refuse(&flow, &refusal, stream),
    };
    let path = Path { worker, pod, member: &member, upstream: &upstream };
    flow.peer.clone_from(&upstream.expected);
    match &upstream.expected {
        None => path.plain(stream, &flow).await,
        Some(expected) => path.mesh(stream, &flow, expected).await,
    }
}

/// A stream that goes on over another connection.
struct Resumed {
    kept: Kept,
    carried: Box<dyn Carried>,
}

struct Path<'a> {
    worker: &'a Worker,
    pod: &'a Pod,
    member: &'a Membership,
    upstream: &'a Upstream,
}

impl Path<'_> {
    fn judge(&self) -> Result<(), Refusal> {
        self.worker.environment.policy.may_continue(self.pod.id, self.upstream)
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

    async fn connect(&self) -> Result<TcpStream, Reason> {
        self.member.set_deadline(Some(self.worker.settings.connect_timeout));
        let sockets = &self.worker.environment.sockets;
        let connecting = connected(sockets.connect_upstream(self.pod.id, self.upstream.address));
        let result = self.member.unless_told(connecting).await;
        self.member.set_deadline(None);
        match result {
            Ok(Ok(stream)) => {
                keep_alive(&stream);
                Ok(stream)
            }
            Ok(Err(_)) => Err(Reason::Unreachable),
            Err(_) => Err(Reason::Unreachable),
        }
    }

    async fn plain(&self, mut client: TcpStream, flow: &Flow) {
        let recorder = &*self.worker.environment.recorder;
        let mut server = match self.connect().await {
            Ok(server) => server,
            Err(reason) => return self.worker.refuse(flow, &Refusal::new(reason), client),
        };
        reset_unless_released(&server);
        let mut carried = recorder.opened(flow);
        let judge = || self.judge();
        let end = {
            let account = Account::new(&*carried);
            let mut copy = Copy::new(&mut client, &mut server, self.around(&judge), account);
            std::future::poll_fn(|cx| copy.poll(cx)).await
        };
        let ending = copied(end, client, server);
        carried.closed(flow, &ending);
    }

    async fn mesh(&self, client: TcpStream, flow: &Flow, expected: &PeerName) {
        let environment = &self.worker.environment;
        let Some(credentials) = environment.credentials.client(self.pod.id, expected) else {
            return self.worker.refuse(flow, &Refusal::new(Reason::NoCertificate), client);
        };
        let key = PoolKey {
            pod: self.pod.id,
            destination: self.upstream.address,
            own: credentials.own.clone(),
            expected: expected.clone(),
        };
        let mut client = client;
        let mut resumed = None;
        if let Some(pooled) = self.worker.pool.take(&key, &credentials.config) {
            match self.stream(&key, pooled, client, flow, Some(&credentials), None).await {
                Some((back, rest)) => (client, resumed) = (back, Some(rest)),
                None => return,
            }
        }
        // On the heap for as long as it takes: the connection's own future stays small.
        match Box::pin(self.establish(&credentials, expected)).await {
            Ok(pooled) => drop(self.stream(&key, pooled, client, flow, None, resumed).await),
            Err(refusal) => self.worker.refuse(flow, &refusal, client),
        }
    }

    /// Nothing has been sent of the application's, so that a pod that has just started may try again: another node
    /// refuses it until it knows its address.
    async fn establish(
        &self,
        credentials: &ClientCredentials,
        expected: &PeerName,
    ) -> Result<Pooled, Refusal> {
        let policy = &*self.worker.environment.policy;
        loop {
            match self.establish_once(credentials, expected).await {
                Err(refusal) if refusal.reason == Reason::Unreachable && policy.is_new(self.pod.id) => {
                    if self.member.unless_told(tokio::time::sleep(ASK_AGAIN)).await.is_err() {
                        return Err(refusal);
                    }
                }
                result => return result,
            }
        }
    }

    async fn establish_once(
        &self,
        credentials: &ClientCredentials,
        expected: &PeerName,
    ) -> Result<Pooled, Refusal> {
        let _room = self.worker.handshake(self.pod, None)?;
        let stream = self.connect().await?;
        self.member.set_deadline(Some(self.worker.settings.handshake_timeout));
        let identities = &*self.worker.environment.credentials;
        let handshake = async {
            self.pod.share.turn(Cost::Handshake).await;
            handshake::connect(&stream, credentials, identities, expected).await
        };
        let result = self.member.unless_told(handshake).await;
        self.member.set_deadline(None);
        let Established { tls, control, behind, peer } = match result {
            Ok(Ok(established)) => established,
            Ok(Err(error)) => {
                tracing::debug!(%error, upstream = %self.upstream.address, "no TLS with the upstream");
                let reason = match error {
                    HandshakeError::Io(_) | HandshakeError::Closed => Reason::Unreachable,
                    HandshakeError::Identity { .. } => Reason::WrongIdentity,
                    HandshakeError::Tls(super::tls::TlsError::Tls(rustls::Error::InvalidCertificate(
                        rustls::CertificateError::NotValidForName
                        | rustls::CertificateError::NotValidForNameContext { .. },
                    ))) => Reason::WrongIdentity,
                    _ => Reason::TlsFailed,
                };
                return Err(Refusal::new(reason).because(error));
            }
            Err(Told::TimedOut) => return Err(Reason::TimedOut.into()),
            Err(Told::Ended | Told::Draining) => return Err(Reason::Unreachable.into()),
        };
        if !behind.is_empty() {
            // A server has nothing to say before OPEN.
            return Err(Reason::BadPeer.into());
        }
        self.worker.environment.recorder.handshake(Hook::Outbound, self.pod.id);
        let wire = wire::Connection::new(wire::Role::Client);
        let secure = Box::new(Secure::new(stream, tls, wire, control));
        let made =
            Made { born: Instant::now(), standing: peer.standing, config: Arc::clone(&credentials.config) };
        Ok(Pooled { secure, made: Box::new(made) })
    }

    /// Carries the stream. What comes back may be tried on another connection. `again`: the connection was used before,
    /// and with these another can be made.
    async fn stream(
        &self,
        key: &PoolKey,
        mut pooled: Pooled,
        client: TcpStream,
        flow: &Flow,
        again: Option<&ClientCredentials>,
        resumed: Option<Resumed>,
    ) -> Option<(TcpStream, Resumed)> {
        let recorder = &*self.worker.environment.recorder;
        let open = Open { client: flow.client, destination: self.upstream.address };
        let secure = &mut pooled.secure;
        let opened = secure.wire.open(&open).map_err(SecureError::from);
        if let Err(error) = opened.and_then(|frame| secure.push_frame(&frame)) {
            tracing::warn!(%error, "OPEN could not be sent");
            self.worker.refuse(flow, &Refusal::new(Reason::TlsFailed), client);
            return None;
        }
        let judge = || self.judge().and_then(|()| pooled.made.standing.judge());
        let (kept, mut carried) = match resumed {
            Some(Resumed { kept, carried }) => (Some(kept), carried),
            None => (None, recorder.opened(flow)),
        };
        let account = Account::new(&*carried);
        let mut relay = Relay::new(secure, client, self.around(&judge), account, Side::Client, false);
        if again.is_some() {
            relay = relay.hold();
        }
        if let Some(kept) = kept {
            relay = match relay.resume(kept) {
                Ok(relay) => relay,
                Err(error) => {
                    tracing::warn!(%error, "a stream could not be taken over to a new connection");
                    return None;
                }
            };
        }
        let settings = &self.worker.settings;
        let patience = if again.is_some() { settings.accept_patience } else { settings.accept_timeout };
        self.member.set_deadline(Some(patience));
        let mut end = std::future::poll_fn(|cx| relay.poll(cx)).await;
        if let (End::Told(Told::TimedOut), true, Some(credentials)) = (&end, relay.is_unanswered(), again) {
            // An agent that was stopped leaves its connections open and silent. A new one is refused by its kernel.
            match Box::pin(self.establish(credentials, &key.expected)).await {
                Err(Refusal { reason: Reason::Unreachable, .. }) => {}
                fresh => {
                    if let Ok(mut fresh) = fresh {
                        // The handshake's last message would travel with the first OPEN.
                        drop(std::future::poll_fn(|cx| Poll::Ready(fresh.secure.flush(cx))).await);
                        self.worker.pool.put(key.clone(), fresh);
                    }
                    self.member.set_deadline(Some(settings.accept_timeout));
                    end = std::future::poll_fn(|cx| relay.poll(cx)).await;
                }
            }
        }
        let silent = matches!(end, End::Told(Told::TimedOut)) && relay.is_unanswered();
        let ending = match end {
            End::Over(how) => {
                drop(relay);
                self.member.set_deadline(None);
                self.worker.pool.put(key.clone(), pooled);
                self.ended(how, flow)
            }
            End::Unsettled(how) => {
                drop(relay);
                abort(pooled.secure.stream);
                self.ended(how, flow)
            }
            End::Lost(error) => {
                tracing::debug!(%error, upstream = %self.upstream.address, "the connection to the far agent broke");
                if let Some((client, kept)) = relay.give_back(&error) {
                    return Some((client, Resumed { kept, carried }));
                }
                abort(pooled.secure.stream);
                Ending::Lost
            }
            End::Told(told) => {
                drop(relay);
                abort(pooled.secure.stream);
                if silent {
                    recorder.refused(flow, &Refusal::new(Reason::Unreachable));
                }
                match told {
                    Told::Ended | Told::Draining => Ending::Detached,
                    Told::TimedOut => Ending::Lost,
                }
            }
        };
        carried.closed(flow, &ending);
        None
    }
}

impl Path<'_> {
    fn ended(&self, how: How, flow: &Flow) -> Ending {
        match how {
            How::Closed => Ending::Closed,
            How::Reset => Ending::Reset,
            How::Terminated(refusal) => Ending::Terminated(refusal),
            How::Refused(code) => {
                let reason = Reason::from_code(code).unwrap_or(Reason::RefusedByPeer);
                tracing::debug!(reason = reason.as_str(), "the far agent refused the stream");
                self.worker.environment.recorder.refused(flow, &Refusal::new(Reason::RefusedByPeer));
                Ending::Reset
            }
        }
    }
}

/// What a plain connection's end was called, and does to its sockets.
pub fn copied(end: CopyEnd, client: TcpStream, server: TcpStream) -> Ending {
    let ending = match end {
        CopyEnd::Closed => {
            release(client);
            release(server);
            return Ending::Closed;
        }
        CopyEnd::Reset => Ending::Reset,
        CopyEnd::Terminated(refusal) => Ending::Terminated(refusal),
        CopyEnd::Told => Ending::Detached,
    };
    abort(client);
    abort(server);
    ending
}
