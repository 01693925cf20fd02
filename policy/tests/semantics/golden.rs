//! The manifests that an API server takes and refuses are read and told of here in the same way, without one.

use heddle_policy::{ClusterSettings, Index, Severity, resources::parse_file};

fn errors(name: &str, text: &str) -> Vec<String> {
    let parsed = parse_file(name, text);
    let mut found = parsed.problems.clone();
    found.extend(Index::of([parsed]).compile_cluster(&ClusterSettings::default(), 0).problems);
    found.retain(|problem| problem.severity == Severity::Error);
    // What a policy refers to lies outside of these files.
    found.iter().map(ToString::to_string).filter(|text| !text.contains("there is no ")).collect()
}

#[test]
fn what_an_api_server_takes_is_read_without_an_error() {
    let text = include_str!("../../../deploy/admission/golden/accepted.yaml");
    assert_eq!(errors("accepted.yaml", text), Vec::<String>::new());
    assert!(parse_file("accepted.yaml", text).resources.len() >= 25);
}

#[test]
fn what_an_api_server_refuses_is_an_error_here_too() {
    let text = include_str!("../../../deploy/admission/golden/rejected.yaml");
    let documents: Vec<&str> = text.split("\n---\n").collect();
    assert!(documents.len() >= 40);
    for document in documents {
        assert!(!errors("rejected.yaml", document).is_empty(), "{document}");
    }
}
