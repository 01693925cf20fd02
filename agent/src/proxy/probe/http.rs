//! One GET of a declared path, and its answer.

use heddle_ebpf::codes::Reason;
use heddle_policy::resources::Check;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::proxy::{relay::Account, sockets::shut_down};

/// Bytes of a request's head: the kubelet's own has some hundred, and the headers that the probe declares.
const HEAD: usize = 8 * 1024;
/// Its headers.
const HEADERS: usize = 64;
/// Headers by which something would follow the head, or the connection become another.
const NOT_OF_A_PROBE: [&str; 5] = ["content-length", "transfer-encoding", "upgrade", "expect", "trailer"];

/// What the bytes are so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Head {
    /// The beginning of a request, perhaps.
    Unfinished,
    /// The probe, and nothing behind it.
    Probe,
    /// Anything else.
    Other,
}

/// Reads a request's head, which must be a declared probe's.
pub async fn read_head(client: &mut TcpStream, checks: &[Check]) -> Result<Vec<u8>, Reason> {
    let mut head = Vec::with_capacity(1024);
    loop {
        let mut rest = (&mut *client).take((HEAD - head.len()) as u64);
        match rest.read_buf(&mut head).await {
            Ok(0) => return Err(Reason::NotTheProbe),
            Ok(_) => {}
            Err(_) => return Err(Reason::Unreachable),
        }
        match judge(&head, checks) {
            Head::Probe => return Ok(head),
            Head::Unfinished if head.len() < HEAD => {}
            Head::Unfinished | Head::Other => return Err(Reason::NotTheProbe),
        }
    }
}

fn judge(bytes: &[u8], checks: &[Check]) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Partial) => return Head::Unfinished,
        Ok(httparse::Status::Complete(length)) => length,
        Err(_) => return Head::Other,
    };
    let more = |header: &httparse::Header<'_>| {
        NOT_OF_A_PROBE.iter().any(|name| header.name.eq_ignore_ascii_case(name))
    };
    let (Some("GET"), Some(target)) = (request.method, request.path) else { return Head::Other };
    if length != bytes.len() || request.headers.iter().any(more) {
        return Head::Other;
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let declared = |check: &Check| match check {
        Check::Http { path: own, query: own_query, https: false } => {
            path == own && query == own_query.as_deref()
        }
        _ => false,
    };
    if checks.iter().any(declared) { Head::Probe } else { Head::Other }
}

/// Has the application answer. A byte more from the client ends both.
pub async fn answer(
    client: &mut TcpStream,
    head: &[u8],
    server: &mut TcpStream,
    account: &mut Account<'_>,
) -> Result<(), Reason> {
    server.write_all(head).await.map_err(|_| Reason::Unreachable)?;
    account.sent(head.len());
    let (mut buffer, mut more) = (vec![0; 16 * 1024], [0]);
    let mut client_ended = false;
    loop {
        tokio::select! {
            read = server.read(&mut buffer) => match read {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    account.received(count);
                    client.write_all(&buffer[..count]).await.map_err(|_| Reason::Unreachable)?;
                }
                // The kubelet has heard enough, or the application has said it all.
                Err(_) if client_ended => return Ok(()),
                Err(_) => return Err(Reason::Unreachable),
            },
            said = client.read(&mut more), if !client_ended => match said {
                Ok(0) => {
                    client_ended = true;
                    shut_down(server);
                }
                Ok(_) => return Err(Reason::NotTheProbe),
                Err(_) => return Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(path: &str, query: Option<&str>, https: bool) -> Check {
        Check::Http { path: path.into(), query: query.map(str::to_owned), https }
    }

    fn judged(text: &str) -> Head {
        let checks = [
            http("/live", None, false),
            http("/ready", Some("verbose=1"), false),
            http("/tls", None, true),
            Check::Tcp,
        ];
        judge(text.as_bytes(), &checks)
    }

    #[test]
    fn a_declared_get_is_the_probe_and_nothing_else_is() {
        let kubelet =
            "Host: 10.0.0.5:8080\r\nUser-Agent: kube-probe/1.34\r\nAccept: */*\r\nConnection: close\r\n\r\n";
        assert_eq!(judged(&format!("GET /live HTTP/1.1\r\n{kubelet}")), Head::Probe);
        assert_eq!(judged(&format!("GET /ready?verbose=1 HTTP/1.1\r\n{kubelet}")), Head::Probe);
        assert_eq!(judged("GET /live HTTP/1.0\r\n\r\n"), Head::Probe);
        for line in [
            "GET /live?x HTTP/1.1",
            "GET /ready HTTP/1.1",
            "GET /ready?verbose=2 HTTP/1.1",
            "GET /tls HTTP/1.1",
            "GET /live/ HTTP/1.1",
            "GET //live HTTP/1.1",
            "GET /./live HTTP/1.1",
            "GET /%6cive HTTP/1.1",
            "GET /LIVE HTTP/1.1",
            "GET http://a/live HTTP/1.1",
            "get /live HTTP/1.1",
            "POST /live HTTP/1.1",
            "GET  /live HTTP/1.1",
            "GET /live HTTP/2.0",
            "GET / HTTP/1.1",
        ] {
            assert_eq!(judged(&format!("{line}\r\n{kubelet}")), Head::Other, "{line}");
        }
    }

    #[test]
    fn nothing_follows_a_probe() {
        for header in [
            "Content-Length: 0",
            "content-length: 5",
            "Transfer-Encoding: chunked",
            "Upgrade: h2c",
            "EXPECT: 100-continue",
            "a b: c",
            "X: a\r\n folded",
        ] {
            let text = format!("GET /live HTTP/1.1\r\n{header}\r\n\r\n");
            assert_eq!(judged(&text), Head::Other, "{header}");
        }
        assert_eq!(judged("GET /live HTTP/1.1\r\n\r\nx"), Head::Other);
        assert_eq!(judged("GET /live HTTP/1.1\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"), Head::Other);
    }

    #[test]
    fn every_beginning_of_a_probe_is_unfinished() {
        let whole = "GET /live HTTP/1.1\r\nHost: a\r\n\r\n";
        for length in 1..whole.len() {
            assert_eq!(judged(&whole[..length]), Head::Unfinished, "{:?}", &whole[..length]);
        }
        let many = "A: b\r\n".repeat(HEADERS + 1);
        assert_eq!(judged(&format!("GET /live HTTP/1.1\r\n{many}\r\n")), Head::Other);
    }
}
