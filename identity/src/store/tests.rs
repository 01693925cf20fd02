use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use super::*;
use crate::{
    Authority, AuthoritySettings, peer_identity,
    testing::{Mesh, connect, db, hours, naming, start, web},
};

fn away() -> Result<Issued, IssueError> {
    Err(IssueError::Away("switched off".to_owned()))
}

fn leaf_of(mesh: &Mesh, workload: &Workload, now: SystemTime) -> CertificateDer<'static> {
    let peer = mesh.workload(&db());
    mesh.clock.set(now);
    let (_, server) =
        connect(workload.client(&db(), now).unwrap().config, &db(), peer.server_config(start()).unwrap())
            .unwrap();
    server.peer_certificates().unwrap()[0].clone()
}

#[test]
fn a_first_certificate_is_due_at_once_and_the_next_at_the_set_part_of_its_life() {
    for (renew_after, due) in [(0.5, 12.0), (0.7, 16.8)] {
        let settings = RenewalSettings { renew_after, random: || 0.0, ..RenewalSettings::default() };
        let mesh = Mesh::with(settings);
        let held = mesh.store.hold(&web(), start());
        assert_eq!(
            held.server_config(start()).unwrap_err(),
            NoCertificate::NotYet { identity: web().to_string() }
        );
        assert_eq!(mesh.store.next_due(), Some(start()));
        assert_eq!(mesh.renew(start()), 1);
        held.server_config(start()).unwrap();
        assert_eq!(held.expires(), Some(start() + hours(24.0)));
        assert_eq!(mesh.store.next_due(), Some(start() + hours(due)));
        assert_eq!(mesh.renew(start() + hours(due - 0.01)), 0);
        assert_eq!(mesh.renew(start() + hours(due)), 1);
        assert_eq!(held.expires(), Some(start() + hours(due + 24.0)));
    }
}

#[test]
fn jitter_spreads_renewals_and_only_forwards() {
    let settings = RenewalSettings { random: || 0.999, ..RenewalSettings::default() };
    let due = settings.after_success(start(), start() + hours(24.0));
    assert!(due < start() + hours(12.0) && due > start() + hours(11.0), "{due:?}");
    let spread: Vec<f64> = (0..100).map(|_| random_fraction()).collect();
    assert!(spread.iter().all(|it| (0.0..1.0).contains(it)));
    assert!(spread.iter().any(|it| *it < 0.4) && spread.iter().any(|it| *it > 0.6));
}

#[test]
fn every_renewal_has_a_fresh_key() {
    let mesh = Mesh::new();
    let held = mesh.workload(&web());
    let first = leaf_of(&mesh, &held, start());
    mesh.renew(start() + hours(12.0));
    let second = leaf_of(&mesh, &held, start() + hours(12.0));
    let key = |der: &CertificateDer<'_>| crate::profile::parse(der).unwrap().public_key().raw.to_vec();
    assert_ne!(key(&first), key(&second));
    assert_eq!(peer_identity(&naming(), &[second]).unwrap(), web());
}

#[test]
fn failed_renewals_keep_the_old_certificate_until_it_expires() {
    let mesh = Mesh::new();
    let held = mesh.workload(&web());
    let expires = held.expires().unwrap();
    let mut now = start() + hours(12.0);
    let mut tries = 0;
    while now < expires {
        for renewal in mesh.store.due(now, 10) {
            mesh.store.complete(renewal, away(), now).unwrap_err();
            tries += 1;
        }
        held.server_config(now).unwrap();
        held.client(&db(), now).unwrap();
        now = mesh.store.next_due().unwrap();
    }
    assert!(tries > 100, "tried again at least every five minutes: {tries}");
    assert_eq!(mesh.store.status()[0].failures, tries);
    let expired = NoCertificate::Expired { identity: web().to_string() };
    assert_eq!(held.server_config(expires).unwrap_err(), expired);
    assert_eq!(held.client(&db(), expires).unwrap_err(), expired);
    // Away for two lifetimes: everything renews by itself on its return.
    let back = start() + hours(60.0);
    let renewal = mesh.store.due(back, 10).pop().unwrap();
    let issued = mesh.authority.issue(renewal.request(), back);
    mesh.store.complete(renewal, issued, back).unwrap();
    held.server_config(back).unwrap();
    assert_eq!(mesh.store.status()[0].failures, 0);
}

/// Whether an authority that is away for 49 % of a lifetime from `begins` hours on leaves an hour without a certificate.
fn outage_costs_nothing(renew_after: f64, begins: f64) -> bool {
    let mesh = Mesh::with(RenewalSettings { renew_after, random: || 0.0, ..RenewalSettings::default() });
    let held = mesh.workload(&web());
    let (from, to) = (start() + hours(begins), start() + hours(begins + 0.49 * 24.0));
    let mut now = start();
    while now < start() + hours(72.0) {
        for renewal in mesh.store.due(now, 10) {
            let issued =
                if (from..to).contains(&now) { away() } else { mesh.authority.issue(renewal.request(), now) };
            let _ = mesh.store.complete(renewal, issued, now);
        }
        if held.server_config(now).is_err() {
            return false;
        }
        now += hours(0.05);
    }
    true
}

#[test]
fn an_authority_away_for_49_percent_of_a_lifetime_costs_nothing_whenever_it_goes() {
    for quarter_hours in 0..120 {
        let begins = f64::from(quarter_hours) / 4.0;
        assert!(
            outage_costs_nothing(RenewalSettings::default().renew_after, begins),
            "begins after {begins} h"
        );
    }
    // Control: renewed at 70 %, the worst moment would cost hours.
    assert!(!outage_costs_nothing(0.7, 16.0));
}

#[test]
fn what_cannot_be_used_is_not_adopted() {
    let mesh = Mesh::new();
    let held = mesh.workload(&web());
    let expires = held.expires();
    let now = start() + hours(12.0);
    let other = Authority::in_memory(naming(), AuthoritySettings::default(), start()).unwrap();
    let attempt = |issue: &dyn Fn(&CertificateRequest) -> Issued| {
        let renewal = mesh.store.due(now + hours(1.0), 10).pop().unwrap();
        let issued = issue(renewal.request());
        let at = now + hours(1.0);
        let outcome = mesh.store.complete(renewal, Ok(issued), at);
        // Made due again for the next attempt.
        mesh.store.slots().by_identity.values_mut().for_each(|slot| slot.due = start());
        outcome
    };
    let at = now + hours(1.0);
    type Answer<'a> = Box<dyn Fn(&CertificateRequest) -> Issued + 'a>;
    let refused: [(&str, Answer<'_>); 4] = [
        ("empty", Box::new(|_| Issued { chain: vec![], key: None })),
        ("another authority's", Box::new(move |request| other.issue(request, at).unwrap())),
        (
            "of another key",
            Box::new(|_| Issued { chain: mesh.forge(&web(), |_| {}).cert.clone(), key: None }),
        ),
        ("expired", Box::new(|request| mesh.authority.issue(request, start() - hours(48.0)).unwrap())),
    ];
    for (what, issue) in &refused {
        assert!(matches!(attempt(issue.as_ref()), Err(RenewalError::Unusable { .. })), "{what}");
        assert_eq!(held.expires(), expires, "{what}");
    }
    attempt(&|request| mesh.authority.issue(request, at).unwrap()).unwrap();
    assert_ne!(held.expires(), expires);
}

#[test]
fn an_identity_goes_with_its_last_holder() {
    let mesh = Mesh::new();
    let first = mesh.store.hold(&web(), start());
    let second = mesh.store.hold(&web(), start());
    assert!(Arc::ptr_eq(&first, &second));
    drop(first);
    assert_eq!(mesh.store.due(start(), 10).len(), 1);
    drop(second);
    assert!(mesh.store.due(start() + hours(1.0), 10).is_empty());
    assert!(mesh.store.status().is_empty());
    // Held anew it starts anew: no certificate of the old holder is handed on.
    assert_eq!(mesh.store.hold(&web(), start()).expires(), None);
}

#[test]
fn other_anchors_renew_everything() {
    let mesh = Mesh::new();
    let _held = (mesh.workload(&web()), mesh.workload(&db()));
    assert!(mesh.store.due(start() + hours(1.0), 10).is_empty());
    mesh.store.reload_trust(vec![mesh.authority.anchors()[0].clone()], &[]).unwrap();
    assert_eq!(mesh.store.due(start() + hours(1.0), 10).len(), 2);
}

#[test]
fn a_renewal_that_is_lost_is_begun_again() {
    let mesh = Mesh::new();
    let _held = mesh.store.hold(&web(), start());
    drop(mesh.store.due(start(), 10));
    assert!(mesh.store.due(start() + ATTEMPT - Duration::from_secs(1), 10).is_empty());
    assert_eq!(mesh.store.due(start() + ATTEMPT, 10).len(), 1);
}

/// The authority's clock is right; the node's is ahead for a while, and then set back.
#[test]
fn a_clock_that_is_set_is_gone_along_with_in_both_directions() {
    let mesh = Mesh::new();
    let held = mesh.workload(&web());
    let step = |node: SystemTime, right: SystemTime| {
        mesh.clock.set(node);
        for renewal in mesh.store.due(node, 10) {
            let issued = mesh.authority.issue(renewal.request(), right);
            let _ = mesh.store.complete(renewal, issued, node);
        }
        held.server_config(node)
    };
    let hour = |hour: f64| start() + hours(hour);
    step(hour(1.0), hour(1.0)).unwrap();
    // Two days ahead: nothing is valid, and that is said.
    assert!(matches!(step(hour(49.0), hour(1.0)), Err(NoCertificate::Expired { .. })));
    assert_eq!(mesh.store.status()[0].failures, 1);
    // Set right, it is not waited for a time that is two days away.
    step(hour(2.0), hour(2.0)).unwrap();
    assert_eq!(mesh.store.status()[0].failures, 0);
    assert_eq!(held.expires(), Some(hour(26.0)));
    assert_eq!(mesh.store.next_due(), Some(hour(14.0)));
    // A little back is no reason for anything.
    step(hour(2.0) - Duration::from_secs(50), hour(2.0)).unwrap();
    assert_eq!(held.expires(), Some(hour(26.0)));
    // With its own authority a node that was ahead has a certificate that is not valid yet once it is set back.
    step(hour(49.0), hour(49.0)).unwrap();
    step(hour(3.0), hour(3.0)).unwrap();
    assert_eq!(held.expires(), Some(hour(27.0)));
}

/// As many as a node may hold, renewed by the pace that the shell keeps.
#[test]
fn a_thousand_accounts_of_a_node_are_renewed_in_time_and_not_all_at_once() {
    const ACCOUNTS: usize = 1000;
    let mesh = Mesh::with(RenewalSettings::default());
    let name = |number: usize| naming().name("shop", &format!("account-{number}")).unwrap();
    let held: Vec<_> = (0..ACCOUNTS).map(|number| mesh.store.hold(&name(number), start())).collect();
    let renew = |now: SystemTime| {
        mesh.clock.set(now);
        let mut count = 0;
        loop {
            let due = mesh.store.due(now, 32);
            if due.is_empty() {
                return count;
            }
            for renewal in due {
                let issued = mesh.authority.issue(renewal.request(), now);
                mesh.store.complete(renewal, issued, now).unwrap();
                count += 1;
            }
        }
    };
    assert_eq!(renew(start()), ACCOUNTS);
    let (mut renewed, mut most) = (0, 0);
    let (mut now, end) = (start(), start() + hours(12.1));
    while now < end {
        let at_once = renew(now);
        renewed += at_once;
        most = most.max(at_once);
        assert!(held.iter().all(|workload| workload.server_config(now).is_ok()));
        now += hours(0.1);
    }
    assert_eq!(renewed, ACCOUNTS, "each once, within half of its life");
    // More than half an hour of jitter, in steps of six minutes.
    assert!(most < ACCOUNTS / 2, "{most} in one step");
    let keys: std::collections::HashSet<_> = held
        .iter()
        .map(|workload| crate::CertificateFacts::of(&workload.chain()).unwrap().public_key)
        .collect();
    assert_eq!(keys.len(), ACCOUNTS, "no two have one key");
}

/// Fails twice, then issues; a stranger's request is never answered.
struct Flaky {
    authority: Authority,
    tries: AtomicU32,
}

impl Issue for Flaky {
    async fn issue(&self, request: CertificateRequest, now: SystemTime) -> Result<Issued, IssueError> {
        if request.identity == db() {
            std::future::pending::<()>().await;
        }
        if self.tries.fetch_add(1, Ordering::Relaxed) < 2 {
            return away();
        }
        self.authority.issue(&request, now)
    }
}

#[tokio::test]
async fn the_shell_retries_and_one_that_hangs_delays_nobody() {
    let authority = Authority::in_memory(naming(), AuthoritySettings::default(), SystemTime::now()).unwrap();
    let tls = TlsSettings::default();
    let anchors = vec![authority.anchors()[0].clone()];
    let trust = Arc::new(Trust::new(naming(), anchors, Arc::clone(&tls.provider)).unwrap());
    let settings = RenewalSettings { first_retry: Duration::from_millis(20), ..RenewalSettings::default() };
    let store = Arc::new(Store::new(trust, tls, settings));
    let flaky = Arc::new(Flaky { authority, tries: AtomicU32::new(0) });
    let keeper = tokio::spawn(keep_renewed(Arc::clone(&store), Arc::clone(&flaky), SystemTime::now));
    let began = Instant::now();
    let _hangs = store.hold(&db(), SystemTime::now());
    let held = store.hold(&web(), SystemTime::now());
    tokio::time::timeout(Duration::from_secs(10), held.ready()).await.unwrap();
    assert_eq!(flaky.tries.load(Ordering::Relaxed), 3);
    assert!(began.elapsed() < Duration::from_secs(5));
    held.server_config(SystemTime::now()).unwrap();
    keeper.abort();
}

#[test]
fn nothing_prints_a_key() {
    let mesh = Mesh::new();
    let held = mesh.store.hold(&web(), start());
    let renewal = mesh.store.due(start(), 1).pop().unwrap();
    assert!(format!("{renewal:?}").contains("key: FreshKey,"));
    assert!(!format!("{:?}", mesh.authority).to_lowercase().contains("issuer"));
    drop(held);
}

/// What an issuer gives that makes keys itself: a certificate of `identity` but for what `change` does to it.
fn given(mesh: &Mesh, identity: &IdentityName, change: impl FnOnce(&mut rcgen::CertificateParams)) -> Issued {
    let (leaf, key) = mesh.forge_with_key(identity, change);
    Issued { chain: vec![leaf], key: Some(crate::GivenKey::from_pkcs8(key.serialize_der())) }
}

#[test]
fn a_certificate_that_comes_with_its_key_is_used_until_the_issuer_has_another() {
    let mesh = Mesh::of_spire();
    let held = mesh.store.hold(&web(), start());
    let renew = |issued: &Issued, now| {
        mesh.store.renew_all(now);
        let renewal = mesh.store.due(now, 10).pop().unwrap();
        mesh.store.complete(renewal, Ok(issued.clone()), now)
    };
    let told = mesh.store.renewals();
    let first = given(&mesh, &web(), |_| {});
    renew(&first, start()).unwrap();
    held.server_config(start()).unwrap();
    assert_eq!((held.chain(), *told.borrow()), (first.chain.clone(), 1));
    // The same again is no failure before it should have been followed by another, and no renewal.
    renew(&first, start() + hours(12.0)).unwrap();
    assert_eq!((mesh.store.status()[0].failures, *told.borrow()), (0, 1));
    assert_eq!(mesh.store.next_due(), Some(start() + hours(18.0)), "half of what is left");
    let late = start() + hours(18.0);
    assert!(renew(&first, late).unwrap_err().to_string().contains("late in its life"));
    assert_eq!(mesh.store.status()[0].failures, 1);
    held.server_config(late).unwrap();
    // What is not the account's, not of its key or by nobody who is trusted replaces nothing.
    let mut of_another_key = given(&mesh, &web(), |_| {});
    of_another_key.key = given(&mesh, &web(), |_| {}).key;
    let stranger = given(&Mesh::new(), &web(), |_| {});
    for wrong in [given(&mesh, &db(), |_| {}), of_another_key, stranger] {
        renew(&wrong, late).unwrap_err();
        assert_eq!(held.chain(), first.chain);
    }
    let second = given(&mesh, &web(), |_| {});
    renew(&second, late).unwrap();
    assert_eq!((held.chain(), mesh.store.status()[0].failures, *told.borrow()), (second.chain, 0, 2));
}

#[test]
fn a_spiffe_name_alone_serves_a_client_alone() {
    let mesh = Mesh::of_spire();
    let held = mesh.store.hold(&web(), start());
    let renew = |issued| {
        mesh.store.renew_all(start());
        mesh.store.complete(mesh.store.due(start(), 10).pop().unwrap(), Ok(issued), start())
    };
    let alone = |name: &IdentityName| {
        let uri = rcgen::SanType::URI(name.spiffe().try_into().unwrap());
        given(&mesh, &web(), |params| params.subject_alt_names = vec![uri])
    };
    renew(alone(&db())).unwrap_err();
    assert!(held.expires().is_none(), "another's");
    renew(alone(&web())).unwrap();
    let none = NoCertificate::SpiffeAlone { identity: web().to_string() };
    assert_eq!(held.server_config(start()).unwrap_err(), none);
    held.client(&db(), start()).unwrap();
    renew(given(&mesh, &web(), |_| {})).unwrap();
    held.server_config(start()).unwrap();
}
