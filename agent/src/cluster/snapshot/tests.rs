use super::*;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock},
};

/// What is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rules(BTreeSet<u32>);

fn rules(allowed: &[u32]) -> Rules {
    Rules(allowed.iter().copied().collect())
}

impl Compare for Rules {
    fn change_since(&self, earlier: &Self) -> Change {
        if self.0.is_superset(&earlier.0) { Change::Widened } else { Change::Narrowed }
    }
}

/// Notes what it was given and what the proxy judged by at that moment.
#[derive(Default)]
struct Kernel {
    reader: OnceLock<SnapshotReader<Rules>>,
    seen: Mutex<Vec<(u64, Option<u64>)>>,
    fail: Mutex<Option<PublishError>>,
}

impl Enforcer<Rules> for Kernel {
    fn publish(&self, snapshot: &Snapshot<Rules>) -> Result<(), PublishError> {
        let proxy = self.reader.get().unwrap().load().map(|proxy| proxy.generation);
        self.seen.lock().unwrap().push((snapshot.generation, proxy));
        self.fail.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

fn publisher(last: u64) -> (Publisher<Rules>, Arc<Kernel>) {
    let kernel = Arc::new(Kernel::default());
    let publisher = Publisher::new(Arc::clone(&kernel) as Arc<dyn Enforcer<Rules>>, last);
    assert!(kernel.reader.set(publisher.reader()).is_ok());
    (publisher, kernel)
}

fn publish(publisher: &mut Publisher<Rules>, allowed: &[u32]) -> Result<Shared<Rules>, PublishError> {
    publisher.publish(rules(allowed), vec![])
}

fn full() -> PublishError {
    PublishError::Full { table: "allows_0".into(), capacity: 4, needed: 5 }
}

#[test]
fn narrowing_reaches_the_kernel_first_and_widening_the_proxy_first() {
    let (mut publisher, kernel) = publisher(41);
    let reader = publisher.reader();
    assert!(reader.load().is_none());
    publish(&mut publisher, &[1]).unwrap();
    publish(&mut publisher, &[1, 2]).unwrap();
    publish(&mut publisher, &[2]).unwrap();
    publish(&mut publisher, &[3]).unwrap();
    // The generation goes on where the tables were found; the first one narrows, for all that is known.
    let expected = [(42, None), (43, Some(43)), (44, Some(43)), (45, Some(44))];
    assert_eq!(*kernel.seen.lock().unwrap(), expected);
    assert_eq!(reader.load().unwrap().generation, 45);
    assert_eq!(reader.publication().kernel_generation, 45);
}

#[test]
fn whoever_watches_is_told_when_kernel_and_proxy_hold_it() {
    let (mut publisher, kernel) = publisher(0);
    let mut watch = publisher.reader().watch();
    publish(&mut publisher, &[1]).unwrap();
    assert!(watch.has_changed().unwrap());
    let told = watch.borrow_and_update().clone();
    assert_eq!((told.proxy_generation, told.kernel_generation), (1, 1));
    assert!(!watch.has_changed().unwrap());
    assert_eq!(kernel.seen.lock().unwrap().len(), 1);
}

#[test]
fn a_kernel_that_fails_holds_up_no_narrowing_and_is_tried_again() {
    let (mut publisher, kernel) = publisher(0);
    let reader = publisher.reader();
    publish(&mut publisher, &[1, 2]).unwrap();
    *kernel.fail.lock().unwrap() = Some(full());
    assert_eq!(publish(&mut publisher, &[1]).unwrap_err(), full());
    assert!(publisher.behind());
    assert_eq!(reader.load().unwrap().compiled.0, rules(&[1]).0);
    let told = reader.publication();
    assert_eq!((told.proxy_generation, told.kernel_generation), (2, 1));
    assert_eq!(
        told.kernel_error.as_deref(),
        Some("the kernel table `allows_0` holds 4 entries, 5 are needed")
    );
    assert_eq!(
        told.remedy.as_deref(),
        Some("set `capacity: {allows: 8}` in the agent's configuration and restart it")
    );
    // With the kernel behind nothing counts as widened: it may still allow what was taken away since.
    publish(&mut publisher, &[1, 3]).unwrap_err();
    assert_eq!(*kernel.seen.lock().unwrap(), [(1, None), (2, Some(1)), (3, Some(2))]);
    // The same rules again are tried again.
    publish(&mut publisher, &[1, 3]).unwrap_err();
    *kernel.fail.lock().unwrap() = None;
    publisher.retry().unwrap();
    assert!(!publisher.behind());
    let told = reader.publication();
    assert_eq!((told.proxy_generation, told.kernel_generation, told.kernel_error), (4, 4, None));
}

#[test]
fn snapshots_of_late_can_be_asked_for_and_older_ones_go() {
    let (mut publisher, _kernel) = publisher(0);
    let reader = publisher.reader();
    for round in 1..=20 {
        publish(&mut publisher, &[round]).unwrap();
    }
    assert_eq!(reader.generation(20).unwrap().compiled.0, rules(&[20]).0);
    assert_eq!(reader.generation(13).unwrap().compiled.0, rules(&[13]).0);
    assert!(reader.generation(12).is_none() && reader.generation(21).is_none());
}

#[test]
fn a_reader_sees_whole_generations_only() {
    let (mut publisher, _kernel) = publisher(0);
    let reader = publisher.reader();
    publish(&mut publisher, &[1, 1]).unwrap();
    let watching = std::thread::spawn(move || {
        let mut last = 0;
        while last < 2000 {
            let snapshot = reader.load().unwrap();
            assert!(snapshot.generation >= last, "went back from {last}");
            last = snapshot.generation;
            let generation = u32::try_from(last).unwrap();
            assert!(*snapshot.compiled == rules(&[generation, generation * 2]) || last == 1);
        }
    });
    for generation in 2..=2000 {
        publish(&mut publisher, &[generation, generation * 2]).unwrap();
    }
    watching.join().unwrap();
}

#[test]
fn a_successor_leaves_the_kernel_alone_until_it_begins_and_uses_no_number_twice() {
    let kernel = Arc::new(Kernel::default());
    let mut publisher = Publisher::waiting(Arc::clone(&kernel) as Arc<dyn Enforcer<Rules>>);
    let reader = publisher.reader();
    assert!(kernel.reader.set(reader.clone()).is_ok());
    for allowed in [1, 2] {
        publish(&mut publisher, &[allowed]).unwrap();
        assert_eq!(reader.load().unwrap().compiled.0, rules(&[allowed]).0, "the proxy is told");
    }
    assert!(kernel.seen.lock().unwrap().is_empty());
    assert!(!publisher.behind(), "nobody may try again what another agent writes");
    assert_eq!(reader.publication().kernel_generation, 0);
    let waiting = reader.load().unwrap().generation;
    assert!(reader.generation(waiting).is_none(), "the number is the other agent's");

    publisher.begin(57).unwrap();
    assert_eq!(kernel.seen.lock().unwrap()[..], [(58, Some(waiting))]);
    assert_eq!((reader.load().unwrap().generation, reader.publication().kernel_generation), (58, 58));
    assert_eq!(reader.load().unwrap().compiled.0, rules(&[2]).0);
    assert_eq!(publish(&mut publisher, &[3]).unwrap().generation, 59);

    // An agent whose successor died in the middle goes on after what that one wrote.
    publisher.begin(70).unwrap();
    assert_eq!(reader.load().unwrap().generation, 71);
    publisher.begin(3).unwrap();
    assert_eq!(reader.load().unwrap().generation, 72, "never backwards");
}
