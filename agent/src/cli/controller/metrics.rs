//! What a replica of the controller counts, and where it is asked.

use crate::cli::{Failure, listen::listen};
use axum::{Router, http::StatusCode, routing::get};
use miette::miette;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{net::SocketAddr, sync::Arc};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Severity {
    severity: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Written {
    what: &'static str,
    outcome: &'static str,
}

/// The counts.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    pub elected: Gauge,
    /// 1 once the API server answered: the replica can do its part.
    pub ready: Gauge,
    problems: Family<Severity, Gauge>,
    written: Family<Written, Counter>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let (elected, ready) = (Gauge::default(), Gauge::default());
        let (problems, written) = (Family::default(), Family::default());
        let mut registry = Registry::with_prefix("heddle_controller");
        registry.register("elected", "1 while this replica is the one that tells", elected.clone());
        registry.register("ready", "1 while the API server answers", ready.clone());
        registry.register(
            "problems",
            "What is wrong with the rules now, by severity",
            Family::clone(&problems),
        );
        registry.register(
            "written",
            "Events and conditions, by what became of them",
            Family::clone(&written),
        );
        Self { registry, elected, ready, problems, written }
    }

    pub(super) fn problems(&self, severity: &'static str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.problems.get_or_create(&Severity { severity }).set(count);
    }

    /// Another replica has them.
    pub(super) fn forget(&self) {
        self.problems.clear();
    }

    pub(super) fn written(&self, what: &'static str, outcome: &'static str) {
        self.written.get_or_create(&Written { what, outcome }).inc();
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Serves `/metrics` and `/ready`.
///
/// # Errors
/// It cannot listen there.
pub(super) async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> Result<(), Failure> {
    let listener = listen(address).await.map_err(|error| {
        miette!(help = "name another with --admin", "cannot listen on {address}: {error}")
    })?;
    let ready = Arc::clone(&metrics);
    let app = Router::new()
        .route(
            "/ready",
            get(
                async move || {
                    if ready.ready.get() == 1 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
                },
            ),
        )
        .route("/metrics", get(async move || metrics.text()));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    Ok(())
}
