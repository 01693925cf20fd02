//! Routes on a Server, and limits on the rate of requests.

use heddle_ebpf::codes::Reason;
use heddle_policy::{Bucket, Budget, Request};

use crate::world::*;

fn http(protocol: &str) -> String {
    server(
        "web",
        &format!("{{podSelector: {{matchLabels: {{app: web}}}}, port: 80, proxyProtocol: {protocol}}}"),
    )
}

fn route(name: &str, spec: &str) -> String {
    let parents = "parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]";
    doc("gateway.networking.k8s.io/v1", "HTTPRoute", name, &format!("{{{parents}, {spec}}}"))
}

fn path(kind: &str, value: &str) -> String {
    format!("rules: [{{matches: [{{path: {{type: {kind}, value: '{value}'}}}}]}}]")
}

fn on_route(name: &str, references: &str) -> String {
    policy(
        &format!("on-{name}"),
        &format!("{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name}}}"),
        references,
    )
}

fn get(target: &str) -> Request<'_> {
    Request { method: "GET", target, host: "shop.example", headers: &[] }
}

fn asked(it: &World, who: &str, request: &Request<'_>) -> (Reason, String) {
    let found = it.request(who, WEB, 80, request);
    (found.decision.verdict.reason, found.route.map(|it| it.name.to_owned()).unwrap_or_default())
}

#[test]
fn what_holds_for_a_request_is_what_is_written_for_its_route_and_for_its_server() {
    let text = http("HTTP/1")
        + &route("one", &path("Exact", "/one"))
        + &route("two", &path("Exact", "/two"))
        + &on_route("one", "[{kind: ServiceAccount, name: web}]")
        + &policy(
            "on-server",
            "{group: policy.linkerd.io, kind: Server, name: web}",
            "[{kind: ServiceAccount, name: db}]",
        );
    let it = world(&text);
    assert!(it.problems.is_empty(), "{:?}", it.problems);
    assert_eq!(asked(&it, "web.shop", &get("/one")), (Reason::Authorized, "HTTPRoute shop/one".into()));
    assert_eq!(asked(&it, "web.shop", &get("/two")), (Reason::Unauthorized, "HTTPRoute shop/two".into()));
    assert_eq!(asked(&it, "db.shop", &get("/two")).0, Reason::Authorized);
    assert_eq!(asked(&it, "", &get("/one")).0, Reason::NoIdentity);
    let rule = it.request("web.shop", WEB, 80, &get("/one")).decision.rule;
    assert_eq!(&*rule, "AuthorizationPolicy shop/on-one");
}

#[test]
fn no_route_is_404_before_any_authorization_and_a_refusal_403() {
    let it = world(&(http("HTTP/1") + &route("one", &path("Exact", "/one"))));
    for (target, reason, status) in [
        ("/one", Reason::Unauthorized, (403, 7)),
        ("/other", Reason::NoRoute, (404, 5)),
        ("/a/../one", Reason::BadRequest, (400, 3)),
    ] {
        let decision = it.request("web.shop", WEB, 80, &get(target)).decision;
        assert_eq!((decision.verdict.reason, decision.status()), (reason, status), "{target}");
    }
}

#[test]
fn without_routes_every_request_is_judged_as_the_connection() {
    let open = http("HTTP/1").replace("HTTP/1", "HTTP/1, accessPolicy: all-authenticated");
    let it = world(&open);
    assert_eq!(asked(&it, "web.shop", &get("/anything")), (Reason::Authorized, String::new()));
    assert_eq!(asked(&it, "", &get("/anything")).0, Reason::NoIdentity);
}

#[test]
fn prefixes_match_by_whole_segments_and_expressions_the_whole_value() {
    for (kind, value, target, takes) in [
        ("PathPrefix", "/a", "/a", true),
        ("PathPrefix", "/a", "/a/", true),
        ("PathPrefix", "/a/", "/a", true),
        ("PathPrefix", "/a", "/a/b?c", true),
        ("PathPrefix", "/a", "/ab", false),
        ("PathPrefix", "/", "/x", true),
        ("PathPrefix", "/a/b", "/a", false),
        ("PathPrefix", "/a/b", "/a/b/c/d", true),
        ("PathPrefix", "/a/b", "/a/bc/d", false),
        ("Exact", "/a", "/a?x=1", true),
        ("Exact", "/a", "/a/", false),
        ("Exact", "/a", "/A", false),
        ("RegularExpression", "/a|/b", "/b", true),
        ("RegularExpression", "/a|/b", "/bc", false),
        ("RegularExpression", "a", "/a", false),
    ] {
        let it = world(&(http("HTTP/1") + &route("r", &path(kind, value))));
        let found = asked(&it, "web.shop", &get(target)).0;
        assert_eq!(found != Reason::NoRoute, takes, "{kind} {value} {target}: {found:?}");
    }
}

#[test]
fn attack_19_an_escaped_character_leads_around_no_narrower_route() {
    let wide = on_route("all", "[{kind: ServiceAccount, name: web}]");
    for (kind, value, targets) in [
        ("Exact", "/v1/users:purge", ["/v1/users:purge", "/v1/users%3Apurge", "/v1/users%3apurge"]),
        ("Exact", "/v1/users%3apurge", ["/v1/users:purge", "/v1/users%3Apurge", "/v1/users%3apurge"]),
        ("PathPrefix", "/v1/a@b!", ["/v1/a@b!/c", "/v1/a%40b%21/c", "/v1/%61@b!"]),
        ("PathPrefix", "/v1/caf%C3%A9", ["/v1/caf%C3%A9", "/v1/caf%c3%a9/x", "/v1/caf%C3%a9"]),
        ("PathPrefix", "/v1/a;b/", ["/v1/a;b", "/v1/a%3Bb/c", "/v1/a%3bb"]),
        ("RegularExpression", "/v1/[a-z]+[$+=][a-z]+", ["/v1/a=b", "/v1/a%24b", "/v1/a%2bb"]),
        ("RegularExpression", "/v1/café", ["/v1/caf%C3%A9", "/v1/caf%c3%a9", "/v1/caf%C3%a9"]),
    ] {
        let text = http("HTTP/1")
            + &route("all", &path("PathPrefix", "/v1"))
            + &route("purge", &path(kind, value))
            + &wide
            + &on_route("purge", "[{kind: ServiceAccount, name: db}]");
        let it = world(&text);
        assert!(it.problems.is_empty(), "{:?}", it.problems);
        for target in targets {
            // An escaped letter is refused for everybody; the control is who may.
            let (other, own) = if target.contains("%61") {
                (Reason::BadRequest, Reason::BadRequest)
            } else {
                (Reason::Unauthorized, Reason::Authorized)
            };
            assert_eq!(asked(&it, "web.shop", &get(target)).0, other, "{kind} {value} {target}");
            assert_eq!(asked(&it, "db.shop", &get(target)).0, own, "{kind} {value} {target}");
        }
        assert_eq!(asked(&it, "web.shop", &get("/v1/other")).0, Reason::Authorized);
    }
    // No request's path has an escape once it is read: such an expression would never hold.
    let it = world(&(http("HTTP/1") + &route("r", &path("RegularExpression", "/a%3Ab"))));
    assert_eq!(asked(&it, "web.shop", &get("/a:b")).0, Reason::InvalidPolicy);
}

#[test]
fn a_header_that_can_be_read_in_two_ways_is_refused() {
    let reason = |test: &str, headers: &[(&str, &[u8])]| {
        let spec = format!("rules: [{{matches: [{{headers: [{{name: h, {test}}}]}}]}}]");
        let it = world(&(http("HTTP/1") + &route("r", &spec)));
        asked(&it, "web.shop", &Request { headers, ..get("/") }).0
    };
    let (taken, not, both) = (Reason::Unauthorized, Reason::NoRoute, Reason::BadRequest);
    let cases: [(&str, &[&str], Reason); 11] = [
        ("value: v", &["v"], taken),
        ("value: v", &[" v "], taken),
        ("value: v", &["w"], not),
        ("value: v", &[], not),
        ("value: v", &["v", "v"], taken),
        ("value: v", &["v, v"], taken),
        ("value: v", &["v", "w"], both),
        ("value: v", &["w, v"], both),
        ("value: 'a, b'", &["a, b"], taken),
        ("value: 'a, b'", &["c", "a, b"], both),
        ("type: RegularExpression, value: 'v+'", &["vv"], taken),
    ];
    for (test, lines, wanted) in cases {
        let headers: Vec<(&str, &[u8])> = lines.iter().map(|line| ("H", line.as_bytes())).collect();
        assert_eq!(reason(test, &headers), wanted, "{test} {lines:?}");
    }
}

#[test]
fn a_query_parameter_is_compared_as_the_application_reads_it() {
    let long =
        |escaped: usize, plain: usize| format!("/?q=%76{}{}", "%76".repeat(escaped), "v".repeat(plain));
    let (most, more) = (long(1, 1022), long(1, 1023));
    // What is not escaped needs no buffer.
    let plain = format!("/?q={}", "v".repeat(5000));
    let (taken, not, both) = (Reason::Unauthorized, Reason::NoRoute, Reason::BadRequest);
    let expression = "type: RegularExpression, value";
    for (test, target, wanted) in [
        ("value: v".to_owned(), "/?q=v", taken),
        ("value: v".to_owned(), "/?q=w", not),
        ("value: v".to_owned(), "/?p=v", not),
        ("value: v".to_owned(), "/", not),
        ("value: v".to_owned(), "/?q", not),
        ("value: v".to_owned(), "/?p=w&q=v&", taken),
        ("value: v".to_owned(), "/?q=v&q=v", taken),
        ("value: v".to_owned(), "/?q=v&q=w", both),
        ("value: v".to_owned(), "/?q=w&q=v", both),
        ("value: v".to_owned(), "/?%71=%76", taken),
        ("value: 'a b'".to_owned(), "/?q=a+b", taken),
        ("value: 'a b'".to_owned(), "/?q=a%20b", taken),
        ("value: 'a%2'".to_owned(), "/?q=a%2", taken),
        (format!("{expression}: 'v+'"), "/?q=vv", taken),
        (format!("{expression}: 'v+'"), "/?q=%76v", taken),
        (format!("{expression}: 'v+'"), "/?q=w", not),
        (format!("{expression}: '.*%.*'"), "/?q=%76", not),
        (format!("{expression}: '[av ]+'"), "/?q=%76+a", taken),
        (format!("{expression}: 'v+'"), &most, taken),
        (format!("{expression}: 'v+'"), &more, both),
        (format!("{expression}: 'v+'"), &plain, taken),
    ] {
        let spec = format!("rules: [{{matches: [{{queryParams: [{{name: q, {test}}}]}}]}}]");
        let it = world(&(http("HTTP/1") + &route("r", &spec)));
        assert_eq!(asked(&it, "web.shop", &get(target)).0, wanted, "{test} {:.40}", target);
    }
}

#[test]
fn a_route_matches_by_method_headers_and_query_all_of_them_together() {
    let of =
        |matches: &str| world(&(http("HTTP/1") + &route("r", &format!("rules: [{{matches: [{matches}]}}]"))));
    let takes = |it: &World, method: &str, target: &str, headers: &[(&str, &[u8])]| {
        let request = Request { method, target, host: "shop.example", headers };
        asked(it, "web.shop", &request).0 != Reason::NoRoute
    };
    let it = of("{method: POST}");
    assert!(takes(&it, "POST", "/", &[]) && !takes(&it, "GET", "/", &[]) && !takes(&it, "post", "/", &[]));
    let it =
        of("{headers: [{name: X-Tenant, value: a}, {name: x-team, type: RegularExpression, value: 'b+'}]}");
    let both: [(&str, &[u8]); 2] = [("x-tenant", b"a"), ("X-Team", b"bb")];
    assert!(takes(&it, "GET", "/", &both) && !takes(&it, "GET", "/", &both[..1]));
    assert!(
        !takes(&it, "GET", "/", &[("x-tenant", b"A"), ("x-team", b"b")]),
        "values are as they are written"
    );
    assert!(
        !takes(&it, "GET", "/", &[("x-tenant", b"a"), ("x-team", b"bc")]),
        "an expression is over the whole value"
    );
    let it =
        of("{queryParams: [{name: v, value: '1'}, {name: w, type: RegularExpression, value: '[0-9]+'}]}");
    assert!(takes(&it, "GET", "/?w=22&v=1", &[]) && !takes(&it, "GET", "/?v=1", &[]));
    assert!(!takes(&it, "GET", "/?v=1&w=2x", &[]) && !takes(&it, "GET", "/", &[]));
    let it =
        of("{path: {type: Exact, value: /a}, method: GET}, {path: {type: Exact, value: /b}, method: PUT}");
    assert!(takes(&it, "GET", "/a", &[]) && takes(&it, "PUT", "/b", &[]), "any of several");
    assert!(!takes(&it, "PUT", "/a", &[]), "but one of them whole");
}

#[test]
fn a_policy_may_be_about_a_route_of_either_group_or_of_grpc() {
    let parents = "parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]";
    for (api, group, kind, protocol, target) in [
        ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io", "HTTPRoute", "HTTP/1", "/"),
        ("policy.linkerd.io/v1beta3", "policy.linkerd.io", "HTTPRoute", "HTTP/1", "/"),
        ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io", "GRPCRoute", "gRPC", "/pkg.S/Get"),
    ] {
        let text = |of: &str| {
            let about = format!("{{group: {of}, kind: {kind}, name: r}}");
            http(protocol)
                + &doc(api, kind, "r", &format!("{{{parents}, rules: [{{}}]}}"))
                + &policy("p", &about, "[{kind: ServiceAccount, name: web}]")
        };
        let request = Request { method: "POST", target, host: "h", headers: &[] };
        let it = world(&text(group));
        assert_eq!(asked(&it, "web.shop", &request).0, Reason::Authorized, "{api} {kind}: {:?}", it.problems);
        assert_eq!(asked(&it, "db.shop", &request).0, Reason::Unauthorized, "{api} {kind}");
        let other =
            if group.starts_with("policy") { "gateway.networking.k8s.io" } else { "policy.linkerd.io" };
        assert_eq!(
            asked(&world(&text(other)), "web.shop", &request).0,
            Reason::Unauthorized,
            "another group's"
        );
    }
}

#[test]
fn precedence_is_the_gateway_apis() {
    let rules = |matches: &str| format!("rules: [{{matches: [{matches}]}}]");
    // Each wins over all that stand after it.
    let specs = [
        ("a", "hostnames: [shop.example], rules: [{}]".to_owned()),
        ("b", "hostnames: ['*.example'], rules: [{}]".to_owned()),
        ("c", rules("{path: {type: Exact, value: /x/y}}")),
        ("d", rules("{path: {type: RegularExpression, value: '/x/.*'}}")),
        ("e", rules("{path: {value: /x/y}}")),
        ("f", rules("{path: {value: /x}, method: GET}")),
        ("g", rules("{path: {value: /x}, headers: [{name: h, value: v}]}")),
        ("h", rules("{path: {value: /x}, queryParams: [{name: q, value: v}]}")),
        ("i", rules("{path: {value: /x}}")),
        ("j", rules("{path: {value: /x}}")),
        ("k", "rules: [{}]".to_owned()),
    ];
    let request =
        Request { method: "GET", target: "/x/y?q=v", host: "Shop.Example.:8080", headers: &[("H", b"v")] };
    for first in 0..specs.len() {
        // In the opposite order of names, so that names do not help.
        let text: String = specs[first..]
            .iter()
            .map(|(name, spec)| {
                let name = if *name == "i" || *name == "j" {
                    (*name).to_owned()
                } else {
                    format!("{}-{name}", char::from(b'z' - name.as_bytes()[0] + b'a'))
                };
                route(&name, spec)
            })
            .collect();
        let it = world(&(http("HTTP/1") + &text));
        let (_, found) = asked(&it, "web.shop", &request);
        assert!(found.ends_with(specs[first].0), "{} and not {found}", specs[first].0);
    }
    let older = route("z", "rules: [{}]")
        .replace("namespace: shop", "namespace: shop, creationTimestamp: '2020-01-01T00:00:00Z'");
    let it = world(&(http("HTTP/1") + &route("a", "rules: [{}]") + &older));
    assert_eq!(asked(&it, "web.shop", &request).1, "HTTPRoute shop/z", "the older");
}

#[test]
fn grpc_routes_go_with_grpc_servers_and_http_routes_with_the_others() {
    let parents = "parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]";
    let grpc = |method: &str| {
        doc(
            "gateway.networking.k8s.io/v1",
            "GRPCRoute",
            "g",
            &format!("{{{parents}, rules: [{{matches: [{{method: {method}}}]}}]}}"),
        )
    };
    let call = Request { method: "POST", target: "/pkg.S/Get", host: "h", headers: &[] };
    for (method, takes) in [
        ("{service: pkg.S, method: Get}", true),
        ("{service: pkg.S}", true),
        ("{method: Get}", true),
        ("{service: pkg}", false),
        ("{service: pkg.S, method: Put}", false),
        ("{type: RegularExpression, service: 'pkg\\.[A-Z]'}", true),
        ("{type: RegularExpression, service: 'pkg'}", false),
    ] {
        let it = world(&(http("gRPC") + &grpc(method)));
        assert!(it.problems.is_empty(), "{:?}", it.problems);
        assert_eq!(asked(&it, "web.shop", &call).0 != Reason::NoRoute, takes, "{method}");
    }
    let it = world(&(http("HTTP/2") + &grpc("{service: none}")));
    assert_eq!(asked(&it, "web.shop", &call).0, Reason::Unauthorized, "is not attached");
    assert!(it.tells("has no effect there"));
}

#[test]
fn a_limit_that_cannot_be_read_closes_the_server_that_it_names() {
    let limit = |total: &str| {
        let spec = format!(
            "{{targetRef: {{group: policy.linkerd.io, kind: Server, name: web}}, total: {{requestsPerSecond: {total}}}}}"
        );
        let open = http("HTTP/1").replace("HTTP/1", "HTTP/1, accessPolicy: all-unauthenticated");
        world(
            &(open.replace("port: 80", "port: 81").replace("name: web, ", "name: other, ")
                + &open
                + &doc("policy.linkerd.io/v1alpha1", "HTTPLocalRateLimitPolicy", "a", &spec)),
        )
    };
    assert_eq!(asked(&limit("5"), "", &get("/")).0, Reason::Unauthenticated, "the control");
    for bad in ["0", "-1", "many", "4294967296"] {
        let it = limit(bad);
        assert_eq!(asked(&it, "", &get("/")).0, Reason::InvalidPolicy, "{bad}");
        let other = it.request("", WEB, 81, &get("/")).decision.verdict.reason;
        assert_eq!(other, Reason::Unauthenticated, "{bad}: no other Server");
    }
}

#[test]
fn limits_are_of_the_oldest_policy_and_an_override_shares_its_budget() {
    let limit = |name: &str, spec: &str| {
        let spec = format!("{{targetRef: {{group: policy.linkerd.io, kind: Server, name: web}}, {spec}}}");
        doc("policy.linkerd.io/v1alpha1", "HTTPLocalRateLimitPolicy", name, &spec)
    };
    let text = http("HTTP/1").replace("HTTP/1", "HTTP/1, accessPolicy: all-unauthenticated")
        + &limit(
            "a",
            "total: {requestsPerSecond: 9}, identity: {requestsPerSecond: 2}, overrides: [{requestsPerSecond: 5, clientRefs: [{kind: ServiceAccount, name: web}, {kind: ServiceAccount, name: db}]}]",
        )
        + &limit("b", "total: {requestsPerSecond: 1}");
    let it = world(&text);
    assert!(it.tells("limits nothing"), "{:?}", it.problems);
    let found = it.request("", WEB, 80, &get("/"));
    let limits = found.limits.unwrap();
    assert_eq!((&*limits.rule, limits.total), ("HTTPLocalRateLimitPolicy shop/a", Some(9)));
    let name = |who: &str| format!("{who}.serviceaccount.identity.linkerd.cluster.local");
    assert_eq!(limits.budget(Some(&name("web.shop"))), Some((Budget::Override(0), 5)));
    assert_eq!(limits.budget(Some(&name("db.shop"))), Some((Budget::Override(0), 5)), "they share it");
    assert_eq!(limits.budget(Some(&name("x.shop"))), Some((Budget::Identity(&name("x.shop")), 2)));
    assert_eq!(limits.budget(None), Some((Budget::Unauthenticated, 2)));
    let mut bucket = Bucket::default();
    assert_eq!((0..10).filter(|_| bucket.take(7, 5)).count(), 5);
    assert_eq!(it.reason("", OUTSIDE, WEB, 80), Reason::NeedsRequest, "never carried as bare bytes");
}

#[test]
fn attack_15_hosts_compare_without_case_port_and_dot_and_a_doubled_header_is_judged_as_the_strictest() {
    let text = http("HTTP/1")
        + &route(
            "admin",
            "hostnames: [shop.example], rules: [{matches: [{headers: [{name: x-role, value: admin}]}]}]",
        )
        + &route("open", "rules: [{}]")
        + &on_route("open", "[]");
    let it = world(&text);
    let ask = |host: &str, headers: &[(&str, &[u8])]| {
        asked(&it, "web.shop", &Request { method: "GET", target: "/", host, headers })
    };
    for host in ["shop.example", "SHOP.example", "shop.example.", "shop.example:80", "Shop.Example.:8080"] {
        assert_eq!(
            ask(host, &[("X-Role", b"admin")]),
            (Reason::Unauthorized, "HTTPRoute shop/admin".into()),
            "{host}"
        );
        for headers in [
            &[("x-role", &b"admin"[..]), ("x-role", b"user")][..],
            &[("x-role", b"user"), ("X-ROLE", b"admin")],
            &[("x-role", b"user, admin")],
            &[("x-role", b"admin,user")],
        ] {
            assert_eq!(ask(host, headers).0, Reason::BadRequest, "{host} {headers:?}");
        }
        assert_eq!(
            ask(host, &[("x-role", b"admin"), ("x-role", b"admin")]).0,
            Reason::Unauthorized,
            "{host}"
        );
        assert_eq!(ask(host, &[("x-role", b"user")]).0, Reason::Authorized, "the control");
    }
    assert_eq!(ask("other.example", &[("x-role", b"admin")]).0, Reason::Authorized, "the control");
}

#[test]
fn attack_18_a_route_never_takes_requests_of_another_namespaces_server() {
    let far = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: thief, namespace: ops}\n\
               spec: {parentRefs: [{group: policy.linkerd.io, kind: Server, name: web, namespace: shop}], hostnames: [shop.example], rules: [{}]}\n\
               ---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: thief, namespace: ops}\n\
               spec: {targetRef: {group: gateway.networking.k8s.io, kind: HTTPRoute, name: thief}, requiredAuthenticationRefs: []}\n";
    let own = http("HTTP/1") + &route("own", &path("Exact", "/own"));
    let it = world(&(own.clone() + far));
    assert_eq!(asked(&it, "web.shop", &get("/own")), (Reason::Unauthorized, "HTTPRoute shop/own".into()));
    assert_eq!(asked(&it, "web.shop", &get("/x")).0, Reason::NoRoute);
    assert!(it.tells("is another namespace's"), "{:?}", it.problems);
    let it = world(&(own + &far.replace("namespace: ops", "namespace: shop")));
    assert_eq!(asked(&it, "web.shop", &get("/x")).0, Reason::Authorized, "the control");
}

#[test]
fn a_route_that_cannot_be_read_closes_its_server() {
    let good = http("HTTP/1").replace("HTTP/1", "HTTP/1, accessPolicy: all-unauthenticated");
    assert_eq!(
        asked(&world(&(good.clone() + &route("r", "rules: [{}]"))), "", &get("/")).0,
        Reason::Unauthenticated
    );
    for spec in [
        "rules: [{matches: [{path: {type: RegularExpression, value: '('}}]}]",
        "rules: [{matches: [{path: {type: Glob, value: /}}]}]",
        "rules: [{matches: [{cookies: []}]}]",
        "rules: [{matches: [{path: {value: /a/../b}}]}]",
        "hostnames: ['*'], rules: [{}]",
        "hostnames: ['a b'], rules: [{}]",
        "rules: [{when: now}]",
        "rules: 5",
    ] {
        let it = world(&(good.clone() + &route("r", spec)));
        let decision = it.request("", WEB, 80, &get("/")).decision;
        assert_eq!(
            (decision.verdict.reason, decision.status()),
            (Reason::InvalidPolicy, (500, 13)),
            "{spec}"
        );
        assert!(!it.allows("", OUTSIDE, WEB, 80), "{spec}");
        assert!(it.problems.iter().any(|problem| problem.line != 0), "{spec}: {:?}", it.problems);
    }
    let unknown = route("r", "rules: [{}]").replace("k8s.io/v1\n", "k8s.io/v9\n");
    assert_eq!(asked(&world(&(good + &unknown)), "", &get("/")).0, Reason::InvalidPolicy);
}

#[test]
fn deciding_takes_no_memory() {
    let routes: String =
        (0..100).map(|i| route(&format!("r{i}"), &path("PathPrefix", &format!("/api/{i}")))).collect();
    let it = world(&(http("HTTP/1").replace("HTTP/1", "HTTP/1, accessPolicy: all-authenticated") + &routes));
    let client = identity("web.shop");
    let (address, server): (std::net::IpAddr, std::net::IpAddr) =
        (OUTSIDE.parse().unwrap(), WEB.parse().unwrap());
    let connection = heddle_policy::Connection { client: &client, address, server: server.into(), port: 80 };
    let headers: [(&str, &[u8]); 2] = [("accept", b"*/*"), ("host", b"shop.example")];
    let request =
        Request { method: "GET", target: "/api/77/items?page=2", host: "shop.example", headers: &headers };
    let mut allowed = false;
    let info = allocation_counter::measure(|| {
        allowed = it.compiled.decide_request(&connection, &request).decision.allowed();
    });
    assert!(allowed);
    assert_eq!(info.count_total, 0, "{info:?}");
}
