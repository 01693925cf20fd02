use super::*;
use crate::cli::policy::testing::{self, SHOP};

fn found(text: &str) -> Findings {
    Findings::of(testing::picture(text))
}

fn with(more: &str) -> Findings {
    found(&format!("{SHOP}---\n{more}"))
}

/// Without the frame around the lines, which depends on the terminal.
fn told(found: &Findings) -> String {
    let one = |it: &Finding| format!("{}\n{}", it.problem, it.equivalent.as_deref().unwrap_or_default());
    found.findings.iter().map(one).collect::<String>() + &found.summary()
}

#[test]
fn a_sound_folder_ends_with_0() {
    let found = found(SHOP);
    assert_eq!(found.findings, [], "{}", found.text());
    assert_eq!((found.code(false), found.code(true)), (0, 0));
}

#[test]
fn findings_are_told_with_line_field_and_remedy() {
    let found = with(
        "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: late, namespace: shop}\nspec:\n  \
         podSelector: {matchLabels: {app: redis}}\n  port: 6379\n---\n\
         apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: dangling, namespace: shop}\nspec:\n  \
         targetRef: {group: policy.linkerd.io, kind: Server, name: redis}\n  \
         requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: nowhere}]\n",
    );
    insta::assert_snapshot!(told(&found));
    assert_eq!((found.code(false), found.code(true)), (1, 1));
}

#[test]
fn warnings_alone_end_with_0_unless_they_are_denied() {
    let found = with(
        "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: typo, namespace: shop}\nspec:\n  \
         podSelector: {matchLabels: {app: wbe}}\n  port: 81\n",
    );
    assert_eq!((found.code(false), found.code(true)), (0, 1), "{}", found.text());
}

const OLDER: &str = "apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: redis.shop.svc.cluster.local, namespace: shop}
spec:
  retryBudget: {retryRatio: 0.5, minRetriesPerSecond: 10, ttl: 10s}
  routes:
  - name: GET /books/{id}
    condition: {method: GET, pathRegex: '/books/[^/]*'}
    isRetryable: true
    timeout: 300ms
  - name: either
    condition: {any: [{method: PUT}, {all: [{method: POST}, {pathRegex: /authors}]}]}
  - name: neither
    condition: {not: {method: PUT}}
---
apiVersion: split.smi-spec.io/v1alpha2
kind: TrafficSplit
metadata: {name: canary, namespace: shop}
spec:
  service: redis
  backends: [{service: redis, weight: 900}, {service: redis-next, weight: 100m}]
";

#[test]
fn older_kinds_are_told_with_what_to_write_instead() {
    let found = with(OLDER);
    assert_eq!((found.code(false), found.code(true), found.findings.len()), (1, 1, 2), "{}", found.text());
    insta::assert_snapshot!(told(&found));
    // What is to be written is read without a fault, and selects the Service's requests.
    for finding in &found.findings {
        let text = finding.equivalent.clone().unwrap();
        let parsed = heddle_policy::resources::parse_file("equivalent.yaml", &text);
        let faults: Vec<_> = parsed.problems.iter().filter(|it| it.severity == Severity::Error).collect();
        assert!(faults.is_empty() && !parsed.resources.is_empty(), "{faults:?}\n{text}");
    }
}

#[test]
fn workloads_that_do_not_run_yet_count_by_their_templates() {
    let running = "apiVersion: v1\nkind: Namespace\nmetadata: {name: new, annotations: {heddle.io/mesh: enabled}}\n---\n\
                   apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: s, namespace: new}\nspec:\n  \
                   podSelector: {matchLabels: {app: api}}\n  port: http\n---\n";
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: api, namespace: new}\nspec:\n  \
                      selector: {matchLabels: {app: api}}\n  template:\n    metadata: {labels: {app: api}}\n    spec:\n      \
                      serviceAccountName: api\n      containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]\n";
    let sound = found(&format!("{running}{deployment}"));
    assert_eq!(sound.findings, [], "{}", sound.text());
    let without = found(&format!(
        "{running}{}",
        deployment
            .replace("app: api}}\n    spec", "app: other}}\n    spec")
            .replace("labels: {app: api}", "labels: {app: other}")
    ));
    assert!(without.text().contains("selects none of the 1 known pods"), "{}", without.text());
}

#[test]
fn json_and_sarif_say_the_same_for_programs() {
    let found = with(OLDER);
    let json: serde_json::Value = serde_json::from_str(&found.json()).unwrap();
    assert_eq!((&json["errors"], &json["warnings"]), (&2.into(), &0.into()));
    assert!(json["problems"][0]["equivalent"].as_str().unwrap().contains("HTTPRoute"));
    insta::assert_snapshot!(sarif::write(&with("kind: [\n").findings).unwrap());
    let sarif: serde_json::Value = serde_json::from_str(&sarif::write(&found.findings).unwrap()).unwrap();
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    assert_eq!(results.len(), found.findings.len());
    let rules = sarif["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
    }
}

#[test]
fn a_finding_is_named_by_kind_and_field_without_places_in_lists() {
    let finding = |resource: &str, field: &str| Finding {
        problem: Problem::new(Severity::Note, &heddle_policy::Origin::default(), "")
            .resource(resource)
            .field(field, 1),
        equivalent: None,
    };
    assert_eq!(finding("Server shop/a", "spec.ports[3].name").rule(), "Server/spec.ports.name");
    assert_eq!(finding("", "").rule(), "file");
}
