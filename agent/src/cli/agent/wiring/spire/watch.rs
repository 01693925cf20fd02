//! What SPIRE's agent has renewed is asked for at once: it tells when a certificate has changed, or an entry.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_identity::{IdentityName, Store};
use tokio::task::{AbortHandle, JoinSet};

use super::Spire;

/// How often it is looked whose certificates are held.
const LOOK: Duration = Duration::from_secs(1);
/// How long until SPIRE's agent is asked again after it was away.
const AGAIN: Duration = Duration::from_secs(2);

/// Has certificates renewed as SPIRE's agent tells, for ever.
pub(super) async fn watch(spire: Spire, store: Arc<Store>) {
    let (mut tasks, mut watched) = (JoinSet::new(), HashMap::<IdentityName, AbortHandle>::new());
    loop {
        let held: HashSet<IdentityName> = store.held().into_iter().collect();
        watched.retain(|identity, task| {
            let stays = held.contains(identity);
            if !stays {
                task.abort();
            }
            stays
        });
        for identity in held {
            watched.entry(identity).or_insert_with_key(|identity| {
                tasks.spawn(listen(spire.clone(), Arc::clone(&store), identity.clone()))
            });
        }
        while tasks.try_join_next().is_some() {}
        tokio::time::sleep(LOOK).await;
    }
}

async fn listen(spire: Spire, store: Arc<Store>, identity: IdentityName) {
    loop {
        // Why there is no answer is told where a renewal asks for one.
        if let Ok(mut answers) = spire.certificates(&identity).await {
            while let Ok(Some(_)) = answers.message().await {
                store.renew(&identity, SystemTime::now());
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
