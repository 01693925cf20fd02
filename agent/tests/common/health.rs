//! A gRPC health server and its client, over HTTP/2 alone.
//!
//! Both are the test's own program, started again: a socket belongs to the cgroup of the process that made it.
#![allow(dead_code, reason = "each test uses its own share")]

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use hyper::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use xtask::lab::{Place, Pod, Running};

const ROLE: &str = "HEDDLE_HEALTH";

fn again(place: &Place, role: &str) -> Result<Running> {
    let own = std::env::current_exe()?;
    let test = "common::health::is_started_by_a_test";
    let role = format!("{ROLE}={role}");
    place.spawn(&["env", &role, &own.to_string_lossy(), "--exact", test, "--ignored", "--nocapture"])
}

/// A server on a port of the pod's: says `SERVING` to every call of every method.
pub fn serve(pod: &Pod, port: u16) -> Result<Running> {
    let running = again(pod.place(), &format!("serve [::]:{port}"))?;
    running.wait_for("listening", Duration::from_secs(30))?;
    Ok(running)
}

/// Calls a method with a service's name; what came back, for people.
pub fn call(from: &Place, to: SocketAddr, path: &str, service: &str) -> Result<String> {
    Ok(again(from, &format!("call {to} {path} {service}"))?.finish(Duration::from_secs(30))?.stdout)
}

#[test]
#[ignore = "not a test of its own"]
fn is_started_by_a_test() -> Result<()> {
    let Ok(role) = std::env::var(ROLE) else { return Ok(()) };
    let words: Vec<&str> = role.split(' ').collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match words[..] {
        ["serve", address] => runtime.block_on(server(address.parse()?)),
        ["call", address, path, service] => {
            match runtime.block_on(client(address.parse()?, path, service)) {
                Ok(answer) => println!("{answer}"),
                Err(error) => println!("no answer: {error:#}"),
            }
            Ok(())
        }
        _ => anyhow::bail!("no role {role:?}"),
    }
}

async fn server(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("listening");
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = answer(stream).await {
                println!("connection: {error:#}");
            }
        });
    }
}

async fn answer(stream: TcpStream) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, mut respond) = call?;
        println!("called {}", request.uri().path());
        let head = Response::builder().header("content-type", "application/grpc").body(())?;
        let mut body = respond.send_response(head, false)?;
        // HealthCheckResponse { status: SERVING }
        body.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 0x08, 0x01]), false)?;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse()?);
        body.send_trailers(trailers)?;
    }
    Ok(())
}

async fn client(address: SocketAddr, path: &str, service: &str) -> Result<String> {
    let stream = tokio::time::timeout(Duration::from_secs(10), TcpStream::connect(address)).await??;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let mut sender = sender.ready().await?;
    let request = Request::builder()
        .method("POST")
        .uri(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("user-agent", "kube-probe/1.34")
        .header("te", "trailers")
        .body(())?;
    let (response, mut body) = sender.send_request(request, false)?;
    let length = u8::try_from(service.len())?;
    let mut message = match service {
        "" => vec![0, 0, 0, 0, 0],
        _ => vec![0, 0, 0, 0, length + 2, 0x0a, length],
    };
    message.extend(service.as_bytes());
    body.send_data(message.into(), true)?;
    let mut answer = response.await?.into_body();
    let mut told = String::new();
    while let Some(data) = answer.data().await {
        let hex: String = data?.iter().skip(5).map(|byte| format!("{byte:02x}")).collect();
        told += &format!("message {hex} ");
    }
    let trailers = answer.trailers().await?.context("no trailers")?;
    let status = trailers.get("grpc-status").context("no status")?.to_str()?;
    Ok(format!("{told}grpc-status {status}"))
}
