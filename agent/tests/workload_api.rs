//! Workloads that speak TLS themselves get certificates of their own, for the pod that they are in and no other.
//!
//! The client is an independent implementation of the SPIFFE Workload API (the crate `spiffe`). It must be a process of its
//! own in a pod's network namespace and cgroup: this very program, called as `workload_api call WHAT SOCKET`.

#[allow(dead_code)]
mod common {
    pub mod authority;
    pub mod peers;
    pub mod shop;
}

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use common::{
    authority::{Ceremony, SOON},
    shop::{A, Shop},
};
use futures_util::StreamExt;
use heddle_identity::{CertificateFacts, anchors_from_pem, pem};
use libtest_mimic::{Arguments, Trial};
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use spiffe::{TrustDomain, WorkloadApiClient};
use xtask::lab::{Place, Pod, Running, eventually};

const PORT: u16 = 8443;
/// Another trust domain, which is federated with.
const EAST: &str = "east.example";
const SOCKET: &str = "workload-api.sock";
/// What a client says that is refused.
const NOBODY: &str = "no identity issued";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [call, what, socket] = &words[..]
        && call == "call"
    {
        return match calling(what, Path::new(socket)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{}", json!({ "error": format!("{error:#}") }));
                ExitCode::FAILURE
            }
        };
    }
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || test().map_err(|error| format!("{error:?}").into())).with_ignored_flag(true)
    };
    let trials = vec![
        trial("a_workload_gets_its_pods_identity_and_nobody_else_does", own_identity_alone),
        trial("renewals_and_anchors_are_streamed_until_the_pod_goes", streamed_until_the_pod_goes),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Calls and prints what comes, a line of JSON each, until the stream ends.
fn calling(what: &str, socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = WorkloadApiClient::connect_to(format!("unix:{}", socket.display())).await?;
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (domain, far) = (TrustDomain::new("cluster.local")?, TrustDomain::new(EAST)?);
        match what {
            "svids" => {
                let mut stream = client.stream_x509_contexts().await?;
                while let Some(context) = stream.next().await.transpose()? {
                    let svid = context.default_svid().context("no SVID")?;
                    let chain: Vec<_> =
                        svid.cert_chain().iter().map(|it| CertificateDer::from(it.as_bytes().to_vec())).collect();
                    let bundle = context.bundle_set().get(&domain).context("no bundle")?;
                    println!(
                        "{}",
                        json!({
                            "id": svid.spiffe_id().to_string(), "chain": pem(&chain), "key": hex(svid.private_key().as_bytes()),
                            "anchors": bundle.authorities().len(),
                            "east": context.bundle_set().get(&far).map(|it| it.authorities().len()),
                        })
                    );
                }
            }
            "bundles" => {
                let mut stream = client.stream_x509_bundles().await?;
                while let Some(bundles) = stream.next().await.transpose()? {
                    let bundle = bundles.get(&domain).context("no bundle")?;
                    let east = bundles.get(&far).map(|it| it.authorities().len());
                    println!("{}", json!({ "anchors": bundle.authorities().len(), "east": east }));
                }
            }
            "jwt" => drop(client.fetch_jwt_svid(["somebody"], None).await?),
            "jwt-bundles" => drop(client.fetch_jwt_bundles().await?),
            "unmarked" => {
                let path = socket.to_owned();
                let connect = tower::service_fn(move |_| {
                    let path = path.clone();
                    async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
                });
                let channel = tonic::transport::Endpoint::from_static("http://workload")
                    .connect_with_connector(connect)
                    .await?;
                let mut bare = tonic::client::Grpc::new(channel);
                bare.ready().await?;
                let method = "/SpiffeWorkloadAPI/FetchX509SVID".parse()?;
                let codec = tonic_prost::ProstCodec::<(), ()>::default();
                bare.server_streaming(tonic::Request::new(()), method, codec).await?;
            }
            other => bail!("nobody calls for {other}"),
        }
        Ok(())
    })
}

struct Workload(Running);

impl Workload {
    fn at(place: &Place, what: &str, socket: &Path) -> Result<Self> {
        let own = std::env::current_exe()?;
        place.spawn(&[&own.to_string_lossy(), "call", what, &socket.to_string_lossy()]).map(Self)
    }

    fn lines(&self) -> Vec<Value> {
        self.0.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The answer with this number, from 0.
    fn line(&self, number: usize) -> Result<Value> {
        let what = format!("message {number} of the stream");
        eventually(&what, SOON * 3, || Ok(self.lines().len() > number))
            .with_context(|| format!("it said {:?} {}", self.lines(), self.0.stderr()))?;
        Ok(self.lines().swap_remove(number))
    }

    /// What ended it.
    fn error(&self) -> Result<String> {
        let mut error = None;
        eventually("the stream to end", SOON, || {
            error = self.lines().iter().find_map(|line| line["error"].as_str().map(str::to_owned));
            Ok(error.is_some())
        })
        .with_context(|| format!("it said {:?}", self.lines()))?;
        error.context("it did not end")
    }
}

struct Own {
    chain: Vec<CertificateDer<'static>>,
    facts: CertificateFacts,
}

/// An answer's certificate, which must be of the pod's identity and of the key beside it, and be believed by the root.
fn own(answer: &Value, pod: &Pod, ceremony: &Ceremony) -> Result<Own> {
    let spiffe = format!("spiffe://cluster.local/ns/{}/sa/{}", pod.namespace, pod.account);
    ensure!(answer["id"] == spiffe.as_str(), "{answer}");
    let text = answer["chain"].as_str().context("no chain")?;
    let chain = anchors_from_pem(text.as_bytes())?;
    let facts = CertificateFacts::of(&chain)?;
    ensure!(facts.names == [spiffe], "{:?}", facts.names);
    let hex = answer["key"].as_str().context("no key")?;
    let key: Vec<u8> = (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16))
        .collect::<Result<_, _>>()?;
    ensure!(
        KeyPair::try_from(&key[..])?.subject_public_key_info() == facts.public_key,
        "the key is another's"
    );
    // OpenSSL believes it, too.
    let file = |name: &str, text: &str| -> Result<String> {
        let path = ceremony.directory.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let (leaf, issuers) = (file("own.crt", &pem(&chain[..1]))?, file("issuers.crt", &pem(&chain[1..]))?);
    let bundle = ceremony.bundle().display().to_string();
    let openssl =
        ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", &bundle, "-untrusted"];
    pod.place().check(&[&openssl[..], &[&issuers, &leaf]].concat())?;
    Ok(Own { chain, facts })
}

/// The agents with an authority that they ask, and node a's socket for workloads.
fn begin(name: &str, serve: &[&str]) -> Result<(Shop, Ceremony, Running, PathBuf)> {
    let mut shop = Shop::closed(name)?;
    let ceremony = Ceremony::hold(&shop.lab)?;
    let authority = ceremony.serve("issuer", PORT, serve)?;
    let folder = shop.lab.directory().join("workloads");
    let base = shop.lab.settings().clone();
    let mut settings = ceremony.settings(&base, A, PORT);
    let federation = ceremony.directory.join("federation");
    std::fs::create_dir_all(&federation)?;
    settings.set("workloadApi", folder.display().to_string());
    settings.set("federation", federation.display().to_string());
    shop.lab.agent(A)?.start(&shop.lab.heddle()?, &settings)?;
    shop.lab.start_agent(A)?;
    Ok((shop, ceremony, authority, folder.join(SOCKET)))
}

fn own_identity_alone() -> Result<()> {
    let (shop, ceremony, authority, socket) = begin("workload-own", &[])?;
    let at = |place: &Place, what: &str| Workload::at(place, what, &socket);
    let (client, stranger) = (shop.client.place(), shop.stranger.place());
    let first = at(client, "svids")?;
    let one = own(&first.line(0)?, &shop.client, &ceremony)?;
    let second = at(client, "svids")?;
    let two = own(&second.line(0)?, &shop.client, &ceremony)?;
    own(&at(stranger, "svids")?.line(0)?, &shop.stranger, &ceremony)?;
    ensure!(at(client, "bundles")?.line(0)? == json!({ "anchors": 1, "east": null }));
    // Each process has a key of its own, and none is the one that the agent speaks with.
    ensure!(one.facts.public_key != two.facts.public_key);
    let told = shop.lab.agent(A)?.request("GET", "/v1/identities", None)?.accepted()?.json()?;
    let mesh = told["identities"].as_array().context("no identities")?;
    let mesh = mesh.iter().find(|it| it["identity"] == shop.client.identity()).context("no such identity")?;
    let mesh = anchors_from_pem(mesh["certificate"]["chain"].as_str().context("no chain")?.as_bytes())?;
    ensure!(CertificateFacts::of(&mesh)?.public_key != one.facts.public_key);
    ensure!(one.chain.len() == 2, "the certificate and its issuer");
    let record = common::authority::recorded(&authority, &[("serial", one.facts.serial.as_str())])?;
    ensure!(
        record["identity"] == "spiffe://cluster.local/ns/shop/sa/client" && record["node"] == A,
        "{record}"
    );

    // Whoever is nobody: told so, and counted.
    let agent = shop.lab.agent(A)?;
    let host = shop.lab.at(A)?.host();
    let counted = |reason: &str| -> Result<u64> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(agent.metric("heddle_workload_api_refused_total", &[&format!("reason=\"{reason}\"")])? as u64)
    };
    for (who, place, reason) in [
        ("a process of the host", host.clone(), "no_pod"),
        ("a pod in no mesh", shop.plain.place().clone(), "no_pod"),
        ("a namespace made in a pod", client.nested("made")?.in_cgroup(client.cgroup().clone()), "no_pod"),
        ("the host in a pod's namespace", client.in_cgroup(host.cgroup().clone()), "other_cgroup"),
        ("a pod in another's namespace", client.in_cgroup(stranger.cgroup().clone()), "other_cgroup"),
    ] {
        let before = counted(reason)?;
        for what in ["svids", "bundles"] {
            let error = at(&place, what)?.error()?;
            ensure!(error.contains(NOBODY), "{who}: {error}");
        }
        ensure!(counted(reason)? == before + 2, "{who} is not counted as {reason}");
    }
    // A thread that entered the pod's namespace: its process did not.
    let error = client.enter(|| Ok(calling("bundles", &socket).err()))?.context("a thread is answered")?;
    let error = error.to_string();
    ensure!(error.contains(NOBODY) && counted("other_namespace")? == 1, "{error}");

    // What the specification demands of every call, and what is not served.
    let error = at(client, "unmarked")?.error()?;
    ensure!(error.contains("workload.spiffe.io") && counted("no_mark")? == 1, "{error}");
    for what in ["jwt", "jwt-bundles"] {
        let error = at(client, what)?.error()?.to_lowercase();
        ensure!(error.contains("implemented"), "{what}: {error}");
    }
    // The control: after all that, who is somebody still is.
    own(&at(client, "svids")?.line(0)?, &shop.client, &ceremony)?;
    // One who begins again and again is slowed down, and others are not.
    let mut slowed = false;
    for _ in 0..60 {
        let one_more = at(client, "svids")?;
        slowed = one_more.line(0)?["error"].as_str().is_some_and(|error| error.contains("too many"));
        if slowed {
            break;
        }
    }
    ensure!(slowed && counted("rate")? > 0);
    own(&at(stranger, "svids")?.line(0)?, &shop.stranger, &ceremony)?;
    ensure!(socket.exists());
    agent.terminate()?;
    ensure!(!socket.exists(), "an agent that ends takes its socket along");
    shop.shut()
}

fn streamed_until_the_pod_goes() -> Result<()> {
    // A minute is the shortest that there is: renewed after half of it.
    let (shop, ceremony, _authority, socket) =
        begin("workload-streams", &["--lifetime", "60s", "--clock-skew", "1s"])?;
    ceremony.root("root-2")?;
    let svids = Workload::at(shop.client.place(), "svids", &socket)?;
    let bundles = Workload::at(shop.client.place(), "bundles", &socket)?;
    let first = own(&svids.line(0)?, &shop.client, &ceremony)?;
    ensure!(bundles.line(0)? == json!({ "anchors": 1, "east": null }));
    // Renewed by itself, with a fresh key, in time.
    let second = own(&svids.line(1)?, &shop.client, &ceremony)?;
    ensure!(second.facts.public_key != first.facts.public_key);
    ensure!(second.facts.not_before < first.facts.not_after);
    ensure!(bundles.lines().len() == 1, "the anchors are what they were");

    // Other anchors reach both at once.
    ceremony.trust(&["root", "root-2"])?;
    ensure!(bundles.line(1)? == json!({ "anchors": 2, "east": null }));
    eventually("a certificate with both anchors beside it", SOON, || {
        Ok(svids.lines().last().is_some_and(|last| last["anchors"] == 2))
    })?;

    // So do another trust domain's, under its own name, and their end.
    ceremony.root("east")?;
    let put = ceremony.directory.join("federation").join(format!("{EAST}.pem"));
    std::fs::copy(ceremony.directory.join("east/ca.crt"), &put)?;
    ensure!(bundles.line(2)? == json!({ "anchors": 2, "east": 1 }));
    eventually("a certificate with the other domain's anchors beside it", SOON, || {
        Ok(svids.lines().last().is_some_and(|last| last["anchors"] == 2 && last["east"] == 1))
    })?;
    std::fs::remove_file(&put)?;
    ensure!(bundles.line(3)? == json!({ "anchors": 2, "east": null }));
    eventually("a certificate without them", SOON, || {
        Ok(svids.lines().last().is_some_and(|last| last["anchors"] == 2 && last["east"].is_null()))
    })?;

    // With the pod its streams end, and another pod's do not.
    let other = Workload::at(shop.stranger.place(), "svids", &socket)?;
    other.line(0)?;
    let gone = shop.client.clone();
    shop.lab.agent(A)?.detach(&gone)?;
    for stream in [&svids, &bundles] {
        let error = stream.error()?;
        ensure!(error.contains(NOBODY), "{error}");
    }
    let error = Workload::at(gone.place(), "svids", &socket)?.error()?;
    ensure!(error.contains(NOBODY), "{error}");
    ensure!(other.lines().iter().all(|line| line["error"].is_null()), "{:?}", other.lines());
    // In the mesh again it is somebody again.
    shop.lab.agent(A)?.attach(&gone)?;
    Workload::at(gone.place(), "svids", &socket)?.line(0).map(drop)?;
    shop.shut()
}
