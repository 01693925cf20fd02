//! A socket is judged as the pod's in which it was made, whoever holds it: passed over a unix socket it brings no
//! identity along that its maker did not have, and leads past nothing.

#[path = "common/loom.rs"]
#[allow(dead_code)]
mod loom;

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixListener,
};

use anyhow::Result;
use loom::{A, Loom, PORT};
use socket2::{Domain, Protocol, Socket, Type};
use xtask::lab::{Output, Pod, Running, apps};

/// Who made the socket that is passed.
#[derive(Clone, Copy)]
enum Maker<'a> {
    /// A process of this pod.
    Pod(&'a Pod),
    /// A process in the network namespace of this pod, and in none of its node's cgroups: no program sees it.
    Unseen(&'a Pod),
}

/// Passes a socket from its maker to `taker`, who connects it and sends `text`.
fn passed(loom: &Loom, name: &str, maker: Maker<'_>, taker: &Pod, to: IpAddr, text: &str) -> Result<Output> {
    let path = loom.lab.directory().join(name);
    let to = SocketAddr::new(to, PORT);
    let take = || apps::take(taker.place(), &path, to, text);
    match maker {
        Maker::Pod(pod) => {
            let _maker: Running = pod.app(&["make", &path.display().to_string(), &to.to_string()])?;
            take()
        }
        Maker::Unseen(pod) => {
            let listener = UnixListener::bind(&path)?;
            let socket = pod
                .place()
                .enter(|| Ok(Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?))?;
            std::thread::scope(|scope| {
                let giver = scope.spawn(|| apps::hand_over(&listener, &socket));
                let output = take();
                giver.join().map_err(|_| anyhow::anyhow!("the giver failed"))??;
                output
            })
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_socket_is_judged_by_where_it_was_made() -> Result<()> {
    let loom = Loom::new("passed")?;
    let (client, far, plain) = (&loom.client, &loom.far, &loom.plain);
    let server = format!("[::]:{PORT}");
    let _servers = [far.app(&["echo", &server])?, loom.near.app(&["echo", &server])?];
    // What was passed, to whom, and whether the rules let its maker speak with the servers.
    let cases = [
        ("unseen", Maker::Unseen(client), client, false),
        ("of-no-mesh", Maker::Pod(plain), client, false),
        ("of-the-mesh", Maker::Pod(client), plain, true),
    ];
    let targets = [IpAddr::from(far.v4), far.v6.into(), loom.near.v4.into()];
    let round = |round: &str| -> Result<Vec<(String, bool, bool, usize)>> {
        let mut told = Vec::new();
        for (name, maker, taker, allowed) in cases {
            for (number, to) in targets.into_iter().enumerate() {
                let name = format!("{round}-{name}-{number}");
                let text = format!("<{name}>");
                let capture = loom.lab.capture(A)?;
                let output = passed(&loom, &name, maker, taker, to, &text)?;
                let hits = capture.stop()?.hits(text.as_bytes());
                told.push((
                    format!("{name} to {to}: {output:?}"),
                    output.stdout.contains(&text),
                    allowed,
                    hits,
                ));
            }
        }
        Ok(told)
    };
    for (what, answered, _, _) in round("off")? {
        assert!(answered, "without the mesh {what}");
    }
    loom.lab.start_agents()?;
    for (what, answered, allowed, hits) in round("on")? {
        assert_eq!(answered, allowed, "{what}");
        assert_eq!(hits, 0, "in the clear between the nodes: {what}");
    }
    loom.lab.close()
}
