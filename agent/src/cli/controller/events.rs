//! Events: what a rule lacks, told on its object.
//!
//! An Event bears a name made of what it says and of when it was due, so that telling the same thing twice is the same
//! Event, whichever replica tells it: nothing but the right to create is needed. What is gone within seconds is told to
//! nobody: pods start, and of rules that are applied together one comes first. What stands is told again every half hour,
//! before the API server forgets it; what is gone is not.

use crate::cluster::kubernetes::whole::Object;
use heddle_policy::{Problem, Severity};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// After so many seconds what still stands is told again: the API server keeps Events for an hour.
const AGAIN: u64 = 30 * 60;
/// What is gone after so many seconds is not told.
const GRACE: u64 = 5;
/// The API's own bounds.
const NOTE_BYTES: usize = 1024;
const NAME_BYTES: usize = 200;
/// So many problems are told of one object; `heddle policy check --cluster` has them all.
pub(super) const PER_OBJECT: usize = 5;
/// Where Events about objects without a namespace are kept.
const OF_THE_CLUSTER: &str = "default";

/// What stands: since when, and in which period it was told.
#[derive(Default)]
pub(super) struct Told(HashMap<u64, Standing>);

#[derive(Clone, Copy)]
struct Standing {
    since: u64,
    told: Option<u64>,
}

/// An Event that is due.
pub(super) struct Due {
    key: u64,
    period: u64,
    pub event: Event,
    pub namespace: String,
}

impl Told {
    /// Of everything that is wrong now, what is to be told, at a time in seconds since 1970. What is wrong no longer is
    /// forgotten.
    pub(super) fn due<'a>(
        &mut self,
        wrong: impl Iterator<Item = (&'a Object, &'a Problem)>,
        instance: &str,
        now: u64,
    ) -> Vec<Due> {
        let mut all = HashMap::new();
        let mut due = Vec::new();
        let mut last = ("", 0);
        for (object, problem) in wrong.filter(|(_, it)| it.severity != Severity::Note) {
            last = if last.0 == object.uid { (last.0, last.1 + 1) } else { (object.uid.as_str(), 1) };
            if last.1 > PER_OBJECT {
                continue;
            }
            let key = key(object, problem);
            // Not everything at once.
            let period = (now + key % AGAIN) / AGAIN;
            let standing = self.0.get(&key).copied().unwrap_or(Standing { since: now, told: None });
            all.insert(key, standing);
            if standing.told != Some(period) && now.saturating_sub(standing.since) >= GRACE {
                let event = event(object, problem, instance, &format!("{key:016x}{period:x}"));
                let namespace = event.metadata.namespace.clone().unwrap_or_default();
                due.push(Due { key, period, event, namespace });
            }
        }
        self.0 = all;
        due
    }

    /// After how long something that stands is due that was never told; none: there is nothing.
    pub(super) fn next(&self) -> Option<Duration> {
        self.0.values().any(|it| it.told.is_none()).then_some(Duration::from_secs(GRACE))
    }

    /// One of them is told.
    pub(super) fn told(&mut self, due: &Due) {
        if let Some(standing) = self.0.get_mut(&due.key) {
            standing.told = Some(due.period);
        }
    }
}

fn key(object: &Object, problem: &Problem) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&object.uid, problem.severity, &problem.field, &problem.reason).hash(&mut hasher);
    hasher.finish()
}

/// What a problem is, in one line.
pub(super) fn note(problem: &Problem) -> String {
    let mut note = String::new();
    for part in [&problem.field, &problem.reason] {
        if !part.is_empty() {
            note += if note.is_empty() { "" } else { ": " };
            note += part;
        }
    }
    if !problem.remedy.is_empty() {
        note += &format!(" ({})", problem.remedy);
    }
    note
}

/// Cut where a character ends.
pub(super) fn cut(mut text: String, bytes: usize) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() > bytes {
        let end = (0..=bytes.saturating_sub(ELLIPSIS.len())).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str(ELLIPSIS);
    }
    text
}

fn event(object: &Object, problem: &Problem, instance: &str, suffix: &str) -> Event {
    let mut name = object.name.clone();
    name.truncate((0..=NAME_BYTES).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0));
    let reason = if problem.severity == Severity::Error { "NotInForce" } else { "Doubtful" };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{suffix}")),
            namespace: Some(object.namespace.clone().unwrap_or_else(|| OF_THE_CLUSTER.to_owned())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some("heddle.io/controller".to_owned()),
        reporting_instance: Some(cut(instance.to_owned(), 128)),
        action: Some("Check".to_owned()),
        reason: Some(reason.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(object.api_version.clone()),
            kind: Some(object.kind.clone()),
            namespace: object.namespace.clone(),
            name: Some(object.name.clone()),
            uid: Some(object.uid.clone()),
            ..ObjectReference::default()
        }),
        note: Some(cut(note(problem), NOTE_BYTES)),
        type_: Some("Warning".to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_policy::Origin;

    fn object(uid: &str) -> Object {
        Object {
            api_version: "policy.linkerd.io/v1beta3".to_owned(),
            kind: "Server".to_owned(),
            namespace: Some("shop".to_owned()),
            name: "web".to_owned(),
            uid: uid.to_owned(),
            generation: Some(1),
            text: "".into(),
        }
    }

    fn problem(severity: Severity, reason: &str) -> Problem {
        Problem::new(severity, &Origin::default(), reason).field("spec.port", 0).remedy("write another")
    }

    /// Tells everything that has stood long enough and is due, and gives its notes.
    fn tell(told: &mut Told, wrong: &[(&Object, &Problem)], now: u64) -> Vec<String> {
        told.due(wrong.iter().copied(), "pod", now);
        told_at(told, wrong, now + GRACE)
    }

    fn told_at(told: &mut Told, wrong: &[(&Object, &Problem)], now: u64) -> Vec<String> {
        let due = told.due(wrong.iter().copied(), "pod", now);
        due.iter().for_each(|it| told.told(it));
        due.into_iter().map(|it| it.event.note.unwrap()).collect()
    }

    #[test]
    fn what_stands_is_told_once_in_half_an_hour_and_what_is_gone_is_not() {
        let (web, bad) = (object("u"), problem(Severity::Error, "is no port"));
        let doubt = problem(Severity::Warning, "selects nothing");
        let note = problem(Severity::Note, "worth knowing");
        let mut told = Told::default();
        let all = [(&web, &bad), (&web, &doubt), (&web, &note)];
        assert_eq!(
            tell(&mut told, &all, 0),
            ["spec.port: is no port (write another)", "spec.port: selects nothing (write another)"]
        );
        let again: usize = (1..=AGAIN / 60).map(|minute| told_at(&mut told, &all, minute * 60).len()).sum();
        assert_eq!(again, 2, "each once more in half an hour");
        assert!(tell(&mut told, &[], 9 * AGAIN).is_empty());
        assert_eq!(tell(&mut told, &[(&web, &doubt)], 9 * AGAIN).len(), 1, "it came back");
    }

    #[test]
    fn what_is_gone_within_the_grace_time_is_not_told_and_what_stands_is_looked_at_when_it_ends() {
        let (web, doubt) = (object("u"), problem(Severity::Warning, "selects nothing"));
        let wrong = [(&web, &doubt)];
        let mut told = Told::default();
        assert_eq!(told.next(), None);
        assert!(told_at(&mut told, &wrong, 100).is_empty(), "it may be that something is still to come");
        assert_eq!(told.next(), Some(Duration::from_secs(GRACE)));
        assert!(told_at(&mut told, &wrong, 99 + GRACE).is_empty());
        assert!(told_at(&mut told, &[], 100 + GRACE).is_empty(), "it is gone");
        assert!(told_at(&mut told, &wrong, 101 + GRACE).is_empty(), "it is new again");
        assert_eq!(told_at(&mut told, &wrong, 101 + 2 * GRACE).len(), 1, "the control: it stands");
        assert_eq!(told.next(), None);
    }

    #[test]
    fn what_was_not_written_is_due_again_and_the_name_is_the_same_whoever_tells_it() {
        let (web, bad) = (object("u"), problem(Severity::Error, "is no port"));
        let name = |told: &mut Told| {
            told.due([(&web, &bad)].into_iter(), "pod", 7);
            let due = told.due([(&web, &bad)].into_iter(), "pod", 7 + GRACE);
            due.into_iter().next().map(|it| it.event.metadata.name.unwrap())
        };
        let (mut one, mut other) = (Told::default(), Told::default());
        let first = name(&mut one).unwrap();
        assert_eq!(name(&mut one).as_ref(), Some(&first), "it was not told");
        assert_eq!(name(&mut other), Some(first));
    }

    #[test]
    fn of_one_object_few_are_told_and_of_each_object_some() {
        let (web, other) = (object("u"), object("v"));
        let many: Vec<Problem> =
            (0..20).map(|it| problem(Severity::Error, &format!("is wrong {it}"))).collect();
        let wrong: Vec<_> = many.iter().map(|it| (&web, it)).chain([(&other, &many[0])]).collect();
        assert_eq!(tell(&mut Told::default(), &wrong, 0).len(), PER_OBJECT + 1);
    }

    #[test]
    fn an_event_keeps_the_api_s_bounds() {
        let long = problem(Severity::Error, &"ö".repeat(2000));
        let (mut told, web, instance) = (Told::default(), object("u"), "p".repeat(300));
        told.due([(&web, &long)].into_iter(), &instance, 0);
        let due = told.due([(&web, &long)].into_iter(), &instance, GRACE);
        let event = &due[0].event;
        assert!(event.note.as_ref().unwrap().len() <= NOTE_BYTES);
        assert!(event.reporting_instance.as_ref().unwrap().len() <= 128);
        assert_eq!(event.regarding.as_ref().unwrap().uid.as_deref(), Some("u"));
    }
}
