//! The own trust domain's anchors as SPIRE's agent has them, followed as they change.

use std::{sync::Arc, time::Duration};

use heddle_identity::{Store, anchors_from_der};
use rustls::pki_types::CertificateDer;

use super::{super::stale::Staleness, Spire, rpc::BundlesResponse, watch::watch};

/// How long SPIRE's agent is waited for as this one starts: it may have been started a moment ago, too.
const APPEARS: Duration = Duration::from_secs(60);
/// How long until it is asked again after it was away.
const AGAIN: Duration = Duration::from_secs(1);

/// The anchors as SPIRE's agent has them.
#[derive(Clone, Debug)]
pub(in super::super) struct SpireBundles {
    spire: Spire,
    trust_domain: String,
    stale: Staleness,
}

impl SpireBundles {
    pub fn new(spire: Spire, trust_domain: &str) -> Self {
        Self { spire, trust_domain: trust_domain.to_owned(), stale: Staleness::default() }
    }

    pub fn staleness(&self) -> Staleness {
        self.stale.clone()
    }

    /// The anchors to start with: waits for SPIRE's agent.
    ///
    /// # Errors
    /// What was the matter to the end.
    pub async fn first(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let mut last = "no answer".to_owned();
        let asking = async {
            loop {
                match self.now().await {
                    Ok(anchors) => return anchors,
                    Err(error) if error == last => {}
                    Err(error) => {
                        tracing::warn!(error, "there are no anchors yet");
                        last = error;
                    }
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        let answer = tokio::time::timeout(APPEARS, asking).await;
        answer.map_err(|_| format!("there are no anchors within {} s: {last}", APPEARS.as_secs()))
    }

    async fn now(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let mut answers = self.spire.bundles().await?;
        let answer = answers.message().await.map_err(|status| self.spire.refusal(&status).to_string())?;
        self.own(&answer.unwrap_or_default())
    }

    /// Puts other anchors in force when there are some, and has certificates renewed as SPIRE's agent tells, for ever. What
    /// cannot be used, and nothing at all, leaves the last anchors in force.
    pub async fn follow(self, store: Arc<Store>) {
        tokio::join!(self.follow_anchors(&store), watch(self.spire.clone(), Arc::clone(&store)));
    }

    async fn follow_anchors(&self, store: &Store) {
        loop {
            let broken = self.listen(store).await;
            self.stale.tell("SPIRE's bundle", Err(broken));
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Until the stream of bundles breaks; says why.
    async fn listen(&self, store: &Store) -> String {
        let mut answers = match self.spire.bundles().await {
            Ok(answers) => answers,
            Err(error) => return error,
        };
        loop {
            match answers.message().await {
                Ok(Some(answer)) => self.stale.tell("SPIRE's bundle", self.apply(&answer, store)),
                Ok(None) => return "SPIRE's agent has ended the stream of bundles".to_owned(),
                Err(status) => return self.spire.refusal(&status).to_string(),
            }
        }
    }

    fn apply(&self, answer: &BundlesResponse, store: &Store) -> Result<(), String> {
        let anchors = self.own(answer)?;
        if anchors == store.trust().anchors() {
            return Ok(());
        }
        let count = anchors.len();
        store.reload_trust(anchors, &[]).map_err(|error| error.to_string())?;
        tracing::info!(count, "another trust bundle of SPIRE's is in force");
        Ok(())
    }

    /// Those of the own trust domain, by its SPIFFE id. Others are not taken from here: who is federated with says the
    /// configuration.
    fn own(&self, answer: &BundlesResponse) -> Result<Vec<CertificateDer<'static>>, String> {
        let id = format!("spiffe://{}", self.trust_domain);
        let der = answer.ca_certificates.get(&id).ok_or_else(|| {
            let others: Vec<&str> = answer.ca_certificates.keys().map(String::as_str).collect();
            format!(
                "SPIRE's agent has no anchors for {id}, the `trustDomain` here, but for {}",
                others.join(", ")
            )
        })?;
        anchors_from_der(der).map_err(|error| error.to_string())
    }
}
