//! One `grpc.health.v1.Health/Check`, and its answer, over HTTP/2 without TLS.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{Reason as H2Reason, RecvStream, server::SendResponse};
use heddle_ebpf::codes::Reason;
use heddle_policy::resources::Check;
use hyper::{Method, Request, Response, header};
use tokio::net::TcpStream;

use crate::proxy::relay::Account;

/// The only method that passes.
const PATH: &str = "/grpc.health.v1.Health/Check";
/// Bytes of headers, either way.
const HEAD: u32 = 8 * 1024;
/// Bytes of an answer's messages: one has two.
const ANSWER: usize = 16 * 1024;

type Client<'a> = h2::server::Connection<&'a mut TcpStream, Bytes>;

/// A call that is a declared probe.
pub struct Asked<'a> {
    client: Client<'a>,
    request: Request<()>,
    message: Bytes,
    respond: SendResponse<Bytes>,
}

/// Reads a call, which must be a declared probe's.
pub async fn read_check<'a>(client: &'a mut TcpStream, checks: &[Check]) -> Result<Asked<'a>, Reason> {
    let messages: Vec<Bytes> = checks.iter().filter_map(message_of).collect();
    let mut connection: Client<'a> = h2::server::Builder::new()
        .max_concurrent_streams(1)
        .max_header_list_size(HEAD)
        .handshake(client)
        .await
        .map_err(|_| Reason::NotTheProbe)?;
    let Some(Ok((request, respond))) = connection.accept().await else { return Err(Reason::NotTheProbe) };
    let (head, mut body) = request.into_parts();
    let request = Request::from_parts(head, ());
    let longest = messages.iter().map(Bytes::len).max().unwrap_or(0);
    if !is_check(&request) || longest == 0 {
        return Err(Reason::NotTheProbe);
    }
    let read = read_message(&mut body, longest);
    let message = unless_more(&mut connection, read).await??;
    if !messages.contains(&message) {
        return Err(Reason::NotTheProbe);
    }
    Ok(Asked { client: connection, request, message, respond })
}

fn is_check(request: &Request<()>) -> bool {
    let is_grpc = |kind: &header::HeaderValue| {
        [&b"application/grpc"[..], b"application/grpc+proto"].contains(&kind.as_bytes())
    };
    request.method() == Method::POST
        && request.uri().path_and_query().is_some_and(|target| target.as_str() == PATH)
        && request.headers().get_all(header::CONTENT_TYPE).iter().count() == 1
        && request.headers().get(header::CONTENT_TYPE).is_some_and(is_grpc)
}

/// The bytes of a probe's call: one uncompressed message with the service's name, in protobuf's canonical form.
fn message_of(check: &Check) -> Option<Bytes> {
    let Check::Grpc { service } = check else { return None };
    let mut message = BytesMut::new();
    if !service.is_empty() {
        // Field 1, length-delimited.
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).ok()?);
    framed.put_slice(&message);
    Some(framed.freeze())
}

async fn read_message(body: &mut RecvStream, longest: usize) -> Result<Bytes, Reason> {
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|_| Reason::NotTheProbe)?;
        message.put_slice(&data);
        if message.len() > longest {
            return Err(Reason::NotTheProbe);
        }
        // It fails only on a stream that is gone, which the next read tells.
        drop(body.flow_control().release_capacity(data.len()));
    }
    match body.trailers().await {
        Ok(None) => Ok(message.freeze()),
        _ => Err(Reason::NotTheProbe),
    }
}

/// Does `work` while the connection's frames are read and written; another call on it ends both.
async fn unless_more<T>(client: &mut Client<'_>, work: impl Future<Output = T>) -> Result<T, Reason> {
    let mut work = std::pin::pin!(work);
    let mut over = false;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            next = client.accept(), if !over => match next {
                Some(Ok(_)) => return Err(Reason::NotTheProbe),
                Some(Err(_)) => return Err(Reason::Unreachable),
                // What has been sent by then may still be answered by what the work waits for.
                None => over = true,
            },
        }
    }
}

impl Asked<'_> {
    /// Has the application answer.
    pub async fn answer(self, server: &mut TcpStream, account: &mut Account<'_>) -> Result<(), Reason> {
        let Self { mut client, request, message, mut respond } = self;
        account.sent(message.len());
        let call = call(server, request, message, &mut respond, account);
        unless_more(&mut client, call).await??;
        // What was answered is written out; the kubelet closes.
        client.graceful_shutdown();
        match client.accept().await {
            None | Some(Err(_)) => Ok(()),
            Some(Ok((_, mut respond))) => {
                respond.send_reset(H2Reason::REFUSED_STREAM);
                Err(Reason::NotTheProbe)
            }
        }
    }
}

async fn call(
    server: &mut TcpStream,
    request: Request<()>,
    message: Bytes,
    respond: &mut SendResponse<Bytes>,
    account: &mut Account<'_>,
) -> Result<(), Reason> {
    let unreachable = |_| Reason::Unreachable;
    let (sender, connection) = h2::client::Builder::new()
        .max_header_list_size(HEAD)
        .initial_max_send_streams(1)
        .enable_push(false)
        .handshake::<_, Bytes>(server)
        .await
        .map_err(unreachable)?;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(unreachable)?;
        let (response, mut body) = sender.send_request(request, false).map_err(unreachable)?;
        body.send_data(message, true).map_err(unreachable)?;
        let (head, mut answer) = response.await.map_err(unreachable)?.into_parts();
        let whole = answer.is_end_stream();
        let mut back = respond.send_response(Response::from_parts(head, ()), whole).map_err(unreachable)?;
        if whole {
            return Ok(());
        }
        let mut total = 0;
        while let Some(data) = answer.data().await {
            let data = data.map_err(unreachable)?;
            total += data.len();
            if total > ANSWER {
                return Err(Reason::LimitReached);
            }
            account.received(data.len());
            drop(answer.flow_control().release_capacity(data.len()));
            back.send_data(data, false).map_err(unreachable)?;
        }
        match answer.trailers().await.map_err(unreachable)? {
            Some(trailers) => back.send_trailers(trailers).map_err(unreachable),
            None => back.send_data(Bytes::new(), true).map_err(unreachable),
        }
    };
    tokio::select! {
        biased;
        result = exchange => result,
        _ = connection => Err(Reason::Unreachable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_bytes() {
        let message = |service: &str| message_of(&Check::Grpc { service: service.into() }).unwrap();
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("s")[..], [0, 0, 0, 0, 3, 0x0a, 1, b's']);
        let long = message(&"s".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        assert_eq!(long.len(), 5 + 303);
        assert_eq!(message_of(&Check::Tcp), None);
    }

    #[test]
    fn only_the_check_itself_is_the_probe() {
        let request = |method: &str, path: &str, kind: &str| {
            let uri = format!("http://a{path}");
            Request::builder().method(method).uri(uri).header("content-type", kind).body(()).unwrap()
        };
        assert!(is_check(&request("POST", PATH, "application/grpc")));
        for (method, path, kind) in [
            ("GET", PATH, "application/grpc"),
            ("POST", "/grpc.health.v1.Health/Watch", "application/grpc"),
            ("POST", "/grpc.health.v1.Health/Check?a", "application/grpc"),
            ("POST", "/shop.Orders/Delete", "application/grpc"),
            ("POST", PATH, "application/json"),
            ("POST", PATH, "application/grpc-web"),
        ] {
            assert!(!is_check(&request(method, path, kind)), "{method} {path} {kind}");
        }
    }
}
