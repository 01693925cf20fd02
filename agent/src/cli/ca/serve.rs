//! `heddle ca serve`.

use std::{
    path::Path,
    process::ExitCode,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use axum::{Router, http::StatusCode, routing::get};
use heddle_identity::{
    AuthoritySettings, IdentityNaming,
    files::{self, Readers},
};
use miette::miette;
use tokio::signal::unix::SignalKind;
use tonic::transport::Server;

use super::{
    super::{
        Failure,
        config::{Log, LogFormat},
        listen::listen,
        logging,
    },
    AGENTS_KEY_BYTES,
    attest::{Attest, SignedTokens, TokenReviews},
    audit,
    counts::Counts,
    flags::ServeFlags,
    issuing::{Issuing, Keeping, Source},
    limits::{Bounds, Rates},
    listener,
    repeated::Repeated,
    rpc::certificate_authority_server::CertificateAuthorityServer,
    scheduled::{ClusterPods, FolderPods, Scheduled},
    service::{Parts, Service},
};

/// How long requests under way may go on at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs until it is told to end.
///
/// # Errors
/// If it cannot start. Once it runs it goes on whatever happens.
pub fn run(flags: &ServeFlags) -> Result<ExitCode, Failure> {
    let format = match flags.log_format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => return Err(miette!(help = "write text or json", "--log-format {other} is not known")),
    };
    let _logging = logging::start(&Log { format, filter: flags.log_filter.clone() });
    super::super::process::keep_secrets()?;
    super::super::process::keep_to_the_module()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("heddle-ca")
        .enable_all()
        .build()
        .map_err(|error| miette!("cannot start: {error}"))?;
    runtime.block_on(serve(flags))?;
    Ok(ExitCode::SUCCESS)
}

fn account(field: &str, text: &str) -> Result<(String, String), Failure> {
    let parts = text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let (namespace, name) = parts.ok_or_else(|| {
        miette!(help = "write it like heddle-system/heddle-agent", "{field} {text} names no service account")
    })?;
    Ok((namespace.to_owned(), name.to_owned()))
}

fn source(flags: &ServeFlags) -> Result<Source, Failure> {
    let naming = IdentityNaming::new(&flags.naming.identity_namespace, &flags.naming.trust_domain)
        .map_err(|error| miette!("identities cannot be named: the name {error}"))?;
    let (namespace, name) = account("--own-account", &flags.own_account)?;
    let own = naming
        .name(&namespace, &name)
        .map_err(|error| miette!("--own-account {}: {error}", flags.own_account))?;
    let settings = AuthoritySettings { lifetime: flags.lifetime, clock_skew: flags.clock_skew };
    Ok(Source { directory: flags.keys.clone(), naming, settings, own })
}

type Known = (Box<dyn Attest>, Box<dyn Scheduled>);

fn from_folder(flags: &ServeFlags, folder: &Path, key: &Path) -> Result<Known, Failure> {
    let bytes = files::read(key, Readers::Anybody, AGENTS_KEY_BYTES).map_err(|error| {
        miette!(help = "name agents.pub, as `heddle ca agents-key` made it", "--agents-key {error}")
    })?;
    let tokens = SignedTokens::new(&bytes, flags.clock_skew).map_err(|error| {
        miette!(
            help = "name agents.pub, as `heddle ca agents-key` made it",
            "--agents-key {}: {error}",
            key.display()
        )
    })?;
    Ok((Box::new(tokens), Box::new(FolderPods::open(folder)?)))
}

async fn from_kubernetes(flags: &ServeFlags) -> Result<Known, Failure> {
    let client = crate::cluster::kubernetes::client(flags.kubeconfig.as_deref()).await.map_err(|error| {
        miette!(
            help = "run in a pod with a service account, or name a --kubeconfig",
            "Kubernetes cannot be reached: {error}"
        )
    })?;
    let (namespace, name) = account("--agent-account", &flags.agent_account)?;
    let reviews = TokenReviews::new(client.clone(), &namespace, &name);
    Ok((Box::new(reviews), Box::new(ClusterPods::watch(client))))
}

async fn serve(flags: &ServeFlags) -> Result<(), Failure> {
    let signals =
        |kind| tokio::signal::unix::signal(kind).map_err(|error| miette!("cannot wait for signals: {error}"));
    let (mut terminate, mut interrupt) =
        (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let source = source(flags)?;
    let first = source.read(SystemTime::now()).map_err(|error| {
        miette!(
            help = "name a directory with tls.key, tls.crt and ca.crt: `heddle ca init` and `heddle ca issuer` make them",
            "the keys in {} cannot be used: {error}",
            flags.keys.display()
        )
    })?;
    let (attest, scheduled) = match (&flags.manifests, &flags.agents_key) {
        (Some(folder), Some(key)) => from_folder(flags, folder, key)?,
        _ => from_kubernetes(flags).await?,
    };
    let issuing = Arc::new(ArcSwap::from_pointee(first));
    let (stale, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
    let keeping =
        tokio::spawn(Keeping::new(source.clone(), Arc::clone(&issuing), Arc::clone(&stale)).follow());
    let bounds = Bounds::default();
    let rates = Arc::new(Rates::new(&bounds));
    let repeated = Arc::new(Repeated::default());
    let (forgetting, recording) = (Arc::clone(&rates), Arc::clone(&repeated));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            forgetting.forget();
            for ((address, reason), times) in recording.due(Instant::now()) {
                audit::refused_again(address, reason, times);
            }
        }
    });
    let listener = listen(flags.listen).await.map_err(|error| {
        miette!(help = "name another with --listen", "cannot listen on {}: {error}", flags.listen)
    })?;
    let address = listener.local_addr().map_err(|error| miette!("{error}"))?;
    if let Some(admin) = flags.admin {
        admin_server(admin, Arc::clone(&issuing), Arc::clone(&counts), stale).await?;
    }
    let service = Service::new(Parts {
        issuing: Arc::clone(&issuing),
        attest,
        scheduled,
        naming: source.naming,
        own: source.own.clone(),
        bounds,
        rates,
        counts,
        repeated,
    });
    let service = CertificateAuthorityServer::new(service).max_decoding_message_size(bounds.request_bytes);
    tracing::info!(%address, identity = %source.own, "the certificate authority is ready");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = Server::builder()
        .timeout(bounds.request + Duration::from_secs(1))
        .max_concurrent_streams(bounds.at_once_per_connection)
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_connection_age(bounds.connection_age)
        .max_connection_age_grace(bounds.request)
        .add_service(service)
        .serve_with_incoming_shutdown(listener::connections(listener, issuing, bounds), async {
            // The other end is gone: end as well.
            let _ = stopped.await;
        });
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        ended = &mut serving => {
            return ended.map_err(|error| miette!("the authority ended by itself: {error}"));
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("the certificate authority ends");
    drop(stop);
    keeping.abort();
    match tokio::time::timeout(DRAIN, serving).await {
        Ok(Err(error)) => tracing::warn!(%error, "connections did not end in order"),
        Ok(Ok(())) => {}
        Err(_) => tracing::info!("connections that did not end are closed"),
    }
    Ok(())
}

async fn admin_server(
    address: std::net::SocketAddr,
    issuing: Arc<ArcSwap<Issuing>>,
    counts: Arc<Counts>,
    stale: Arc<AtomicBool>,
) -> Result<(), Failure> {
    let listener = listen(address).await.map_err(|error| {
        miette!(help = "name another with --admin", "cannot listen on {address}: {error}")
    })?;
    let ready = Arc::clone(&issuing);
    let app = Router::new()
        .route(
            "/ready",
            get(async move || {
                if ready.load().is_ready(SystemTime::now()) {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                }
            }),
        )
        .route(
            "/metrics",
            get(async move || metrics(&issuing.load(), &counts, stale.load(Ordering::Relaxed))),
        );
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    Ok(())
}

fn metrics(issuing: &Issuing, counts: &Counts, stale: bool) -> String {
    use prometheus_client::{
        collector::Collector,
        encoding::{DescriptorEncoder, EncodeMetric, text::encode},
        metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
        registry::{Registry, Unit},
    };
    #[derive(Debug)]
    struct Now {
        expiry: f64,
        stale: bool,
        issued: u64,
        refused: Vec<(&'static str, u64)>,
    }
    impl Collector for Now {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            let help = "When the issuer's certificate expires, in seconds since 1970";
            let family = encoder.encode_descriptor(
                "heddle_ca_expiry",
                help,
                Some(&Unit::Seconds),
                MetricType::Gauge,
            )?;
            ConstGauge::new(self.expiry).encode(family)?;
            let help = "1 while the keys on disk cannot be used and older ones are in force";
            let family = encoder.encode_descriptor("heddle_ca_keys_stale", help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::from(self.stale)).encode(family)?;
            let help = "Certificates issued";
            let family = encoder.encode_descriptor("heddle_ca_issued", help, None, MetricType::Counter)?;
            ConstCounter::new(self.issued).encode(family)?;
            let help = "Requests refused, by reason";
            let mut family =
                encoder.encode_descriptor("heddle_ca_refused", help, None, MetricType::Counter)?;
            for (reason, count) in &self.refused {
                ConstCounter::new(*count).encode(family.encode_family(&[("reason", *reason)])?)?;
            }
            Ok(())
        }
    }
    let expiry = issuing.authority.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let refused = counts.refused.lock().unwrap_or_else(PoisonError::into_inner);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Now {
        expiry: expiry.as_secs_f64(),
        stale,
        issued: counts.issued.load(Ordering::Relaxed),
        refused: refused.iter().map(|(reason, count)| (*reason, *count)).collect(),
    }));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        // Writing to a String does not fail.
        Err(_) => String::new(),
    }
}
