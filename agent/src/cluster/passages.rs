//! Pods that enter the mesh, or leave it, while they run: how long they are on their way, as this agent sees it.
//!
//! Nobody tells an agent what another one has done, so each goes by when it saw the wish. A pod that was outside and is
//! to be inside is spoken to in plain text for a step, in which its own agent captures it; from then on in TLS. Its own agent
//! takes both for two steps: by then every client's agent has switched, or its connections are refused. A pod that was
//! inside and is to be outside goes the same way back: its own agent takes both at once, the others ask for plain text after
//! a step, its own agent lets it go after two, and it counts as outside after three, so that nothing of it is refused in
//! between. Who was never seen on the other side is on no way: a pod that starts is in the mesh from its first byte, and an
//! agent that starts takes everybody for what they are to be.

use std::{collections::HashMap, time::Duration};

use heddle_policy::{
    Compiled, Standing,
    resources::{ObjectName, Passage},
};

/// How long each step takes, in microseconds.
#[derive(Clone, Copy)]
struct Steps(i64);

impl Steps {
    /// How long a pod that is to be in the mesh is spoken to in plain text.
    const fn asked_plain(self) -> i64 {
        self.0
    }

    /// How long it takes plain text.
    const fn takes_plain(self) -> i64 {
        self.0.saturating_mul(2)
    }

    /// How long a pod that is to be outside counts as one of the mesh.
    const fn left(self) -> i64 {
        self.0.saturating_mul(3)
    }
}

/// Where each pod stands, and since when those are on their way that are.
pub(super) struct Passages {
    steps: Steps,
    stood: HashMap<u64, bool>,
    ways: HashMap<u64, Way>,
}

struct Way {
    inwards: bool,
    since: i64,
    passage: Passage,
}

impl Way {
    fn at(&self, steps: Steps, now: i64) -> (Passage, Option<i64>) {
        let inwards = [(Passage::Joining, steps.asked_plain()), (Passage::Settling, steps.takes_plain())];
        let outwards = [
            (Passage::Leaving, steps.asked_plain()),
            (Passage::Parting, steps.takes_plain()),
            (Passage::Left, steps.left()),
        ];
        let way: &[_] = if self.inwards { &inwards } else { &outwards };
        let since = now.saturating_sub(self.since);
        match way.iter().find(|(_, until)| since < *until) {
            Some((passage, until)) if since >= 0 => (*passage, Some(self.since.saturating_add(*until))),
            // A clock that was set back is no reason to go on taking plain text.
            _ => (Passage::Over, None),
        }
    }
}

impl Passages {
    /// Nobody is on the way. Each step takes as long as is given.
    pub(super) fn by_steps_of(step: Duration) -> Self {
        let step = i64::try_from(step.as_micros()).unwrap_or(i64::MAX);
        Self { steps: Steps(step), stood: HashMap::new(), ways: HashMap::new() }
    }

    /// The pods whose passage is another than was compiled; and when the next one's will be.
    pub(super) fn look(
        &mut self,
        compiled: &Compiled,
        now: i64,
    ) -> (Vec<(ObjectName, Passage)>, Option<i64>) {
        let (mut changed, mut next) = (Vec::new(), None::<i64>);
        let mut stands = HashMap::with_capacity(self.stood.len());
        for info in compiled.pods() {
            let inside = match (info.standing, info.passage) {
                (Standing::Meshed, passage) if passage.is_outwards() => false,
                (Standing::Meshed, _) => true,
                (Standing::Plain, _) => false,
                // Nobody speaks with those.
                _ => continue,
            };
            stands.insert(info.digest, inside);
            if self.stood.get(&info.digest).is_some_and(|stood| *stood != inside) {
                self.ways.insert(info.digest, Way { inwards: inside, since: now, passage: info.passage });
            }
            let Some(way) = self.ways.get_mut(&info.digest) else { continue };
            let (passage, until) = way.at(self.steps, now);
            next = next.into_iter().chain(until).min();
            if way.passage != passage || info.passage != passage {
                way.passage = passage;
                changed.push((ObjectName::new(&*info.namespace, &*info.name), passage));
            }
        }
        self.ways.retain(|digest, way| stands.contains_key(digest) && way.passage != Passage::Over);
        self.stood = stands;
        (changed, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{rules::Rules, view::View};
    use heddle_policy::{ClusterSettings, resources::parse_file};

    const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, uid: u1}, \
                       spec: {nodeName: a, serviceAccountName: web}, status: {podIP: 10.0.0.1}}";
    const SECOND: i64 = 1_000_000;
    const STEP: i64 = 3 * SECOND;

    fn namespace(rules: &mut Rules, annotations: &str) {
        let text = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{{annotations}}}}}}}"
        );
        rules.put("namespace", &parse_file("namespace", &text));
    }

    fn stands(rules: &mut Rules, now: i64) -> (bool, Passage) {
        let (compiled, problems) = rules.compile(now);
        assert!(problems.is_empty(), "{problems:?}");
        let info = compiled.pod("shop", "web").unwrap();
        (info.meshed(), info.passage)
    }

    fn rules(annotations: &str) -> Rules {
        let mut rules = Rules::new(View::of_a(ClusterSettings::default()));
        namespace(&mut rules, annotations);
        rules.put("pod", &parse_file("pod", POD));
        rules
    }

    #[test]
    fn a_pod_that_runs_comes_in_and_goes_out_by_steps() {
        let mut rules = rules("");
        assert_eq!(stands(&mut rules, 0), (false, Passage::Over));
        namespace(&mut rules, "heddle.io/mesh: enabled");
        let at = 10 * SECOND;
        assert_eq!(stands(&mut rules, at), (true, Passage::Joining));
        assert!(!rules.expired(at + SECOND) && rules.expired(at + STEP));
        // What is said of it meanwhile leaves it on its way.
        rules.put("pod", &parse_file("pod", POD));
        assert_eq!(stands(&mut rules, at + SECOND), (true, Passage::Joining));
        assert_eq!(stands(&mut rules, at + STEP), (true, Passage::Settling));
        assert_eq!(stands(&mut rules, at + 2 * STEP), (true, Passage::Over));
        assert!(!rules.expired(at + 100 * SECOND));

        namespace(&mut rules, "heddle.io/mesh: disabled");
        let at = 60 * SECOND;
        assert_eq!(stands(&mut rules, at), (true, Passage::Leaving));
        assert_eq!(stands(&mut rules, at + STEP), (true, Passage::Parting));
        assert_eq!(stands(&mut rules, at + 2 * STEP), (true, Passage::Left));
        assert_eq!(stands(&mut rules, at + 3 * STEP), (false, Passage::Over));
    }

    #[test]
    fn a_step_takes_as_long_as_the_installation_says() {
        let mut rules =
            Rules::new(View { join_step: Duration::from_secs(10), ..View::of_a(ClusterSettings::default()) });
        namespace(&mut rules, "");
        rules.put("pod", &parse_file("pod", POD));
        stands(&mut rules, 0);
        namespace(&mut rules, "heddle.io/mesh: enabled");
        stands(&mut rules, 0);
        assert_eq!(stands(&mut rules, 10 * SECOND - 1), (true, Passage::Joining));
        assert_eq!(stands(&mut rules, 20 * SECOND - 1), (true, Passage::Settling));
        assert_eq!(stands(&mut rules, 20 * SECOND), (true, Passage::Over));
    }

    #[test]
    fn who_was_never_outside_is_inside_at_once() {
        let mut rules = rules("heddle.io/mesh: enabled");
        assert_eq!(stands(&mut rules, SECOND), (true, Passage::Over));
        // Another of the same name is another.
        namespace(&mut rules, "");
        stands(&mut rules, 2 * SECOND);
        stands(&mut rules, 2 * SECOND + 3 * STEP);
        let other = POD.replace("u1", "u2");
        namespace(&mut rules, "heddle.io/mesh: enabled");
        rules.put("pod", &parse_file("pod", &other));
        assert_eq!(stands(&mut rules, 20 * SECOND), (true, Passage::Over));
    }

    #[test]
    fn a_clock_that_is_set_back_ends_the_way() {
        let mut rules = rules("");
        stands(&mut rules, 90 * SECOND);
        namespace(&mut rules, "heddle.io/mesh: enabled");
        assert_eq!(stands(&mut rules, 100 * SECOND), (true, Passage::Joining));
        assert_eq!(stands(&mut rules, 50 * SECOND), (true, Passage::Over));
    }

    #[test]
    fn linkerds_wish_is_one_where_the_installation_says_so_and_never_for_a_pod_with_its_proxy() {
        let wish = "linkerd.io/inject: enabled";
        assert_eq!(stands(&mut rules(wish), 0), (false, Passage::Over));
        let told = |pod: &str, annotations: &str| {
            let settings = ClusterSettings { linkerd_inject: true, ..ClusterSettings::default() };
            let mut rules = Rules::new(View::of_a(settings));
            namespace(&mut rules, annotations);
            rules.put("pod", &parse_file("pod", pod));
            stands(&mut rules, 0).0
        };
        assert!(told(POD, wish));
        assert!(!told(POD, "linkerd.io/inject: disabled"));
        assert!(!told(POD, "linkerd.io/inject: enabled, heddle.io/mesh: disabled"));
        for list in ["containers", "initContainers"] {
            let proxied = POD.replace(
                "serviceAccountName: web",
                &format!("serviceAccountName: web, {list}: [{{name: linkerd-proxy, image: i}}]"),
            );
            assert!(!told(&proxied, wish), "{list}");
            assert!(told(&proxied, "heddle.io/mesh: enabled"), "its own word is not a wish of Linkerd's");
        }
    }
}
