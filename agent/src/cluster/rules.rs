//! What resources mean together, worked out anew where a change touches it, wherever they come from.

use super::{passages::Passages, view::View};
use heddle_policy::{
    Compiled, Compiler, Problem, Severity,
    resources::{Kind, ObjectName, Parsed, Passage, Resource},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A clock that was set is noticed after this long.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(30);

/// The time in microseconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The resources of a node's cluster.
pub(super) struct Rules {
    compiler: Compiler,
    problems: BTreeMap<String, Vec<Problem>>,
    passages: Passages,
    expiry: Option<i64>,
    /// What was told already: a cluster's rules are worked out often.
    told: BTreeSet<String>,
}

impl Rules {
    pub(super) fn new(view: View) -> Self {
        Self {
            compiler: Compiler::new(view.settings, Some(view.node)).within(view.capacity),
            problems: BTreeMap::new(),
            passages: Passages::by_steps_of(view.join_step),
            expiry: None,
            told: BTreeSet::new(),
        }
    }

    /// Takes what a file, or an object of the API server's, says now.
    pub(super) fn put(&mut self, file: &str, parsed: &Parsed) {
        // What is said of a pod anew leaves it on its way.
        let named = |resource: &Resource| match resource {
            Resource::Pod(pod) => Some(pod.meta.object_name()),
            _ => None,
        };
        let passages: BTreeMap<_, _> = parsed
            .resources
            .iter()
            .filter_map(named)
            .filter_map(|name| Some((name.clone(), self.passage(&name)?)))
            .collect();
        self.compiler.remove_file(file);
        for resource in &parsed.resources {
            let mut resource = resource.clone();
            if let Resource::Pod(pod) = &mut resource {
                pod.passage = passages.get(&pod.meta.object_name()).copied().unwrap_or_default();
            }
            self.compiler.apply(resource);
        }
        if parsed.problems.is_empty() {
            self.problems.remove(file);
        } else {
            self.problems.insert(file.to_owned(), parsed.problems.clone());
        }
    }

    /// Forgets what it said.
    pub(super) fn remove(&mut self, file: &str) {
        self.compiler.remove_file(file);
        self.problems.remove(file);
    }

    /// What is in force at a time, and everything that is wrong with it.
    pub(super) fn compile(&mut self, now: i64) -> (Compiled, Vec<Problem>) {
        let mut compiled = self.compiler.compile(now);
        let (changed, mut next) = self.passages.look(&compiled, now);
        if !changed.is_empty() {
            for (name, passage) in changed {
                if let Some(Resource::Pod(pod)) = self.compiler.index().get(Kind::Pod, &name) {
                    let mut pod = pod.clone();
                    pod.passage = passage;
                    self.compiler.apply(Resource::Pod(pod));
                }
            }
            compiled = self.compiler.compile(now);
            // Whoever has left is outside only now.
            next = next.into_iter().chain(self.passages.look(&compiled, now).1).min();
        }
        self.expiry = compiled.next_expiry.into_iter().chain(next).min();
        let parsed = self.problems.values().flatten().cloned();
        let mut problems: Vec<Problem> = parsed.chain(compiled.problems.iter().cloned()).collect();
        problems.sort_by(|a, b| (&a.file, a.line, a.severity).cmp(&(&b.file, b.line, b.severity)));
        let mut told = BTreeSet::new();
        for problem in &problems {
            let text = problem.to_string();
            if !self.told.contains(&text) {
                tell(problem);
            }
            told.insert(text);
        }
        self.told = told;
        (compiled, problems)
    }

    fn passage(&self, name: &ObjectName) -> Option<Passage> {
        match self.compiler.index().get(Kind::Pod, name)? {
            Resource::Pod(pod) => Some(pod.passage),
            _ => None,
        }
    }

    /// Whether a rule that was in force has expired, or a pod is further on its way.
    pub(super) fn expired(&self, now: i64) -> bool {
        self.expiry.is_some_and(|at| at <= now)
    }

    /// When to look whether one has.
    pub(super) fn due(&self, now: i64) -> Option<Duration> {
        let left = u64::try_from(self.expiry?.saturating_sub(now)).unwrap_or(0);
        Some(Duration::from_micros(left).min(LOOK_AT_CLOCK))
    }
}

fn tell(problem: &Problem) {
    match problem.severity {
        Severity::Error => tracing::error!(%problem, "a resource is not in force as it is written"),
        Severity::Warning => tracing::warn!(%problem, "a resource is in force, but probably not as meant"),
        Severity::Note => tracing::debug!(%problem, "a note on a resource"),
    }
}
