use super::*;
use heddle_policy::ClusterSettings;
use serde_json::json;

const NAMESPACES: usize = 0;
const PODS: usize = 2;
const SERVICES: usize = 3;
const SLICES: usize = 4;
const SERVERS: usize = 5;

fn pod(name: &str, uid: &str, node: &str, addresses: &[&str]) -> Value {
    let listed: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": uid},
        "spec": {"nodeName": node, "serviceAccountName": name, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Pending", "podIPs": listed},
    })
}

fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "annotations": {"heddle.io/mesh": "enabled"}}})
}

/// Everything listed but what `with` tells, everything else absent.
fn objects(with: Vec<(usize, Value)>) -> Objects {
    let mut objects = Objects::new(View::of_a(ClusterSettings::default()));
    for kind in 0..KINDS.len() {
        if kind < SERVERS {
            objects.take(kind, Told::Listing);
            for (_, object) in with.iter().filter(|(of, _)| *of == kind) {
                objects.take(kind, Told::Listed(object.clone()));
            }
            objects.take(kind, Told::Complete);
        } else {
            objects.take(kind, Told::Absent);
        }
    }
    objects
}

fn addresses(objects: &mut Objects, name: &str) -> Option<Vec<String>> {
    let (compiled, _) = objects.compile(0);
    compiled.pod("shop", name).map(|pod| pod.addresses.iter().map(ToString::to_string).collect())
}

#[test]
fn nothing_is_in_force_before_every_kind_is_known() {
    let mut objects = Objects::new(View::of_a(ClusterSettings::default()));
    for kind in 0..KINDS.len() {
        assert!(!objects.complete());
        objects.take(kind, Told::Listing);
        assert!(!objects.complete());
        objects.take(kind, if kind % 2 == 0 { Told::Complete } else { Told::Absent });
    }
    assert!(objects.complete());
}

#[test]
fn what_a_new_list_does_not_hold_is_gone_and_what_cannot_be_watched_stays() {
    let mut objects = objects(vec![(NAMESPACES, namespace()), (PODS, pod("web", "u", "a", &["10.0.0.1"]))]);
    assert_eq!(addresses(&mut objects, "web"), Some(vec!["10.0.0.1".into()]));
    objects.take(PODS, Told::Broken("away".into()));
    objects.take(PODS, Told::Absent);
    objects.take(PODS, Told::Listing);
    assert!(addresses(&mut objects, "web").is_some(), "in force until the new list is whole");
    objects.take(PODS, Told::Listed(pod("db", "v", "a", &["10.0.0.2"])));
    objects.take(PODS, Told::Complete);
    assert_eq!(addresses(&mut objects, "web"), None);
    assert!(addresses(&mut objects, "db").is_some());
    objects.take(PODS, Told::Gone(pod("db", "v", "a", &["10.0.0.2"])));
    assert_eq!(addresses(&mut objects, "db"), None);
}

#[test]
fn what_policy_does_not_read_changes_nothing() {
    let mut objects = objects(vec![(PODS, pod("web", "u", "a", &["10.0.0.1"]))]);
    objects.compile(0);
    let mut same = pod("web", "u", "a", &["10.0.0.1"]);
    same["metadata"]["resourceVersion"] = "8".into();
    same["status"]["containerStatuses"] = json!([{"restartCount": 1}]);
    objects.take(PODS, Told::Applied(same.clone()));
    assert!(!objects.changed());
    same["status"]["phase"] = "Succeeded".into();
    objects.take(PODS, Told::Applied(same));
    assert!(objects.changed());
}

#[test]
fn an_early_address_holds_until_the_api_server_says_the_same() {
    let mut objects = objects(vec![(NAMESPACES, namespace()), (PODS, pod("web", "u", "a", &[]))]);
    let early: IpAddr = "10.0.0.7".parse().unwrap();
    assert_eq!(addresses(&mut objects, "web"), Some(vec![]));
    assert_eq!(objects.admit("shop", "nobody", "u", &[early]), Err(Unfit::Unknown));
    assert_eq!(objects.admit("shop", "web", "other", &[early]), Err(Unfit::Another("u".into())));
    objects.admit("shop", "web", "u", &[early]).unwrap();
    assert!(objects.changed());
    let (compiled, _) = objects.compile(0);
    assert!(compiled.pod("shop", "web").unwrap().meshed());
    assert_eq!(addresses(&mut objects, "web"), Some(vec!["10.0.0.7".into()]));
    // Another change of the pod, still without addresses.
    let mut ready = pod("web", "u", "a", &[]);
    ready["status"]["phase"] = "Running".into();
    objects.take(PODS, Told::Applied(ready));
    assert_eq!(addresses(&mut objects, "web"), Some(vec!["10.0.0.7".into()]));
    objects.take(PODS, Told::Applied(pod("web", "u", "a", &["10.0.0.7"])));
    assert_eq!(addresses(&mut objects, "web"), Some(vec!["10.0.0.7".into()]));
    // From here on the API server alone is believed.
    objects.take(PODS, Told::Applied(pod("web", "u", "a", &["10.0.0.8"])));
    assert_eq!(addresses(&mut objects, "web"), Some(vec!["10.0.0.8".into()]));
}

#[test]
fn an_address_that_the_api_server_denies_is_not_believed() {
    let mut objects = objects(vec![(NAMESPACES, namespace()), (PODS, pod("web", "u", "a", &["10.0.0.1"]))]);
    // A new sandbox of the same pod: the API server still tells the one before.
    objects.admit("shop", "web", "u", &["10.0.0.7".parse().unwrap()]).unwrap();
    assert_eq!(addresses(&mut objects, "web"), Some(vec!["10.0.0.7".into()]));
    objects.take(PODS, Told::Applied(pod("web", "u", "a", &["10.0.0.9"])));
    assert_eq!(addresses(&mut objects, "web"), Some(vec!["10.0.0.9".into()]));
    // A pod of the same name that took its place brings no address of the one before.
    objects.admit("shop", "web", "u", &["10.0.0.7".parse().unwrap()]).unwrap();
    objects.take(PODS, Told::Applied(pod("web", "u2", "a", &[])));
    assert_eq!(addresses(&mut objects, "web"), Some(vec![]));
}

#[test]
fn what_a_namespace_says_of_the_mesh_is_known_once_the_namespace_is() {
    let mut objects = objects(vec![(NAMESPACES, namespace())]);
    assert_eq!(objects.wish_of("shop"), Some(Wish { mesh: Some("enabled".into()), inject: None }));
    assert_eq!(objects.wish_of("bank"), None);
    let plain = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    objects.take(NAMESPACES, Told::Applied(plain));
    assert_eq!(objects.wish_of("shop"), Some(Wish { mesh: None, inject: None }));
    assert!(objects.plain_namespaces().contains("shop"));
}

#[test]
fn another_node_s_pod_has_no_early_address_here() {
    let mut objects = objects(vec![(PODS, pod("web", "u", "b", &[]))]);
    let refused = objects.admit("shop", "web", "u", &["10.0.0.7".parse().unwrap()]);
    assert_eq!(refused, Err(Unfit::Elsewhere("b".into())));
}

#[test]
fn a_resource_that_cannot_be_parsed_grants_nothing_and_is_told() {
    let mut objects = objects(vec![(NAMESPACES, namespace())]);
    let server = json!({"apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server",
        "metadata": {"name": "s", "namespace": "shop"}, "spec": {"podSelector": {}, "port": 70000}});
    objects.take(SERVERS, Told::Listing);
    objects.take(SERVERS, Told::Listed(server));
    objects.take(SERVERS, Told::Complete);
    let (_, problems) = objects.compile(0);
    assert!(problems.iter().any(|it| it.file == "servers.policy.linkerd.io/shop/s"), "{problems:?}");
}

fn service(selector: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "selector": selector, "ports": [{"port": 80, "targetPort": 8080}]}})
}

fn slice(endpoints: Value) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080}]})
}

fn backends(objects: &mut Objects) -> Vec<String> {
    let (compiled, _) = objects.compile(0);
    compiled.tables.backends.values().map(|it| format!("{}:{}", it.address.to_ip(), it.port)).collect()
}

#[test]
fn a_service_leads_where_its_slices_say_and_nowhere_before_they_do() {
    let mut labelled = pod("web", "u", "a", &["10.0.0.1"]);
    labelled["metadata"]["labels"] = json!({"app": "web"});
    labelled["status"]["phase"] = "Running".into();
    let mut objects = objects(vec![
        (NAMESPACES, namespace()),
        (PODS, labelled),
        (SERVICES, service(json!({"app": "web"}))),
    ]);
    assert_eq!(backends(&mut objects), Vec::<String>::new(), "the selector is the controller's affair");
    let of_pod = |uid: &str| json!([{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "web", "uid": uid}}]);
    objects.take(SLICES, Told::Applied(slice(of_pod("u"))));
    assert_eq!(backends(&mut objects), ["10.0.0.1:8080"]);
    // When it changed, and in which zone, is nothing to us.
    let mut same = slice(of_pod("u"));
    same["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": "now"});
    same["endpoints"][0]["zone"] = "z".into();
    objects.take(SLICES, Told::Applied(same));
    assert!(!objects.changed());
    objects.take(
        SLICES,
        Told::Applied(slice(json!([{"addresses": ["192.0.2.7"]}, {"addresses": ["127.0.0.1"]}]))),
    );
    let (_, problems) = objects.compile(0);
    assert!(
        problems.iter().any(|it| it.file == "endpointslices.discovery.k8s.io/shop/web-x"
            && it.field == "endpoints[1].addresses[0]"),
        "{problems:?}"
    );
    assert_eq!(backends(&mut objects), ["192.0.2.7:8080"]);
    objects.take(PODS, Told::Applied(pod("web", "u2", "a", &["10.0.0.1"])));
    objects.take(SLICES, Told::Applied(slice(of_pod("u"))));
    assert_eq!(backends(&mut objects), Vec::<String>::new(), "another pod has the address by now");
    objects.take(SLICES, Told::Gone(slice(json!([]))));
    assert_eq!(backends(&mut objects), Vec::<String>::new());
}
