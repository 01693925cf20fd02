//! Any text in a field that decides access: never a panic, and never a wider access than what is written there means, by a
//! naive reading of that field alone. The fuzz target `fields` runs the same.

use std::net::IpAddr;

use heddle_policy::{
    ClientIdentity, ClusterSettings, Compiled, Connection, Index, Request, Severity, resources::parse_file,
};

/// One pod, `shop/server` at 10.1.0.1, whose container names port 80 `http`.
const SCENE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {heddle.io/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, uid: u, labels: {app: server}, annotations: {POD}}
spec: {nodeName: a, serviceAccountName: server, containers: [{name: c, image: i, ports: [{name: http, containerPort: 80}]}]}
status: {phase: Running, podIP: 10.1.0.1}
"#;
/// A Server on port 80 that a policy may be attached to.
const SERVER: &str = "---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: web, namespace: shop}\n\
    spec: {podSelector: {}, port: 80, proxyProtocol: PROTOCOL, accessPolicy: ACCESS}\n";
const NOW: i64 = 1_770_000_000_000_000;
const PORTS: [u16; 6] = [1, 79, 80, 81, 8080, 65535];
const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
const WEB_URI: &str = "spiffe://cluster.local/ns/shop/sa/web";
const OUTSIDE: [&str; 5] = ["192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::1", "2001:db8:1::1"];

/// A field: its name, texts that it is written with, and what must hold of any. That says whether anybody was let in.
pub struct Field {
    pub name: &'static str,
    pub written: &'static [&'static str],
    pub holds: fn(&str) -> bool,
}

pub const FIELDS: [Field; 17] = [
    Field {
        name: "a network's block",
        written: &[
            "192.0.2.0/24",
            "192.0.2.1",
            "0.0.0.0/0",
            "2001:db8::/32",
            "::/0",
            "::ffff:192.0.2.0/120",
            "192.0.2.1/24",
            "fe80::1%eth0",
            "192.0.2.0/33",
            "192.0.2.0/+8",
        ],
        holds: block,
    },
    Field {
        name: "an exception",
        written: &["192.0.2.1", "192.0.2.128/25", "192.0.2.0/24", "10.0.0.0/8", "x"],
        holds: exception,
    },
    Field {
        name: "a rule's port",
        written: &["80", "80-81", "http", "1-65535", "0-80", "81-80", "65616", "080", " 80"],
        holds: port_of_a_rule,
    },
    Field {
        name: "a Server's port",
        written: &["80", "http", "https", "65616", "-1"],
        holds: port_of_a_server,
    },
    Field {
        name: "a default policy",
        written: &[
            "all-unauthenticated",
            "all-authenticated",
            "cluster-unauthenticated",
            "deny",
            "audit",
            "Audit",
            "allow",
        ],
        holds: default_policy,
    },
    Field {
        name: "ports that need an identity",
        written: &["80", "79-81", "http", "80,8080", "", ",", "80;81", "79 - 81, 8080"],
        holds: need_identity,
    },
    Field {
        name: "an identity",
        written: &[
            "*",
            WEB,
            WEB_URI,
            "*.shop.serviceaccount.identity.linkerd.cluster.local",
            "*.local",
            "web.shop.*",
            "",
        ],
        holds: identity,
    },
    Field {
        name: "an identity that is denied",
        written: &["bank.shop.example", WEB, WEB_URI, "*.local", "*", "Web.shop", "spiffe://other/x"],
        holds: denied_identity,
    },
    Field { name: "an operator", written: &["In", "NotIn", "Exists", "DoesNotExist", "in"], holds: operator },
    Field { name: "a label", written: &["server", "client", "", "Server"], holds: label },
    Field {
        name: "a host",
        written: &["api.shop.example", "*.shop.example", "API.shop.example.", "api.shop.example:80", "*"],
        holds: host,
    },
    Field {
        name: "an exact path",
        written: &["/items/7", "/items/7/", "/items//7", "items", "/items/%37"],
        holds: exact_path,
    },
    Field {
        name: "a prefix",
        written: &["/", "/items", "/items/", "/item", "/items/7", "/items/7/x", ""],
        holds: prefix,
    },
    Field {
        name: "an expression",
        written: &[
            "/items/[0-9]+",
            ".*",
            "/items",
            "(?i)/ITEMS/7",
            "(a{1000}){1000}",
            "((((.*)*)*)*)*",
            "[",
            "(?=a)",
            "a|/items/7",
            "\\p{L}{500}",
        ],
        holds: expression,
    },
    Field {
        name: "an expiry",
        written: &[
            "2026-12-01T00:00:00Z",
            "2020-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "2026-12-01",
            "tomorrow",
        ],
        holds: expiry,
    },
    Field { name: "an action", written: &["Allow", "Deny", "allow", "ALLOW"], holds: action },
    Field { name: "a mode", written: &["Enforce", "Audit", "audit"], holds: mode },
];

/// As YAML writes any text.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

fn compiled(pod: &str, rules: &str) -> Compiled {
    let text = format!("{}{rules}", SCENE.replace("{POD}", &format!("{{{pod}}}")));
    let parsed = parse_file("fuzz.yaml", &text);
    // What is no YAML, or no resource, breaks its file, and nothing of it is put in force: without a route, say, the
    // Server would take every request.
    let broken = parsed.problems.iter().any(|it| it.severity == Severity::Error && it.resource.is_empty());
    Index::of((!broken).then_some(parsed)).compile_cluster(&ClusterSettings::default(), NOW)
}

fn server(protocol: &str, access: &str) -> String {
    SERVER.replace("PROTOCOL", protocol).replace("ACCESS", access)
}

fn access_rule(spec: &str) -> String {
    format!(
        "---\napiVersion: heddle.io/v1alpha1\nkind: AccessRule\nmetadata: {{name: it, namespace: shop}}\nspec: {spec}\n"
    )
}

fn connection<'a>(client: &'a ClientIdentity, address: &str, port: u16) -> Connection<'a> {
    let address = address.parse().unwrap_or(IpAddr::from([192, 0, 2, 1]));
    Connection { client, address, server: IpAddr::from([10, 1, 0, 1]).into(), port }
}

fn lets(compiled: &Compiled, client: &ClientIdentity, address: &str, port: u16) -> bool {
    compiled.decide(&connection(client, address, port)).allowed()
}

fn anybody(compiled: &Compiled, port: u16) -> bool {
    lets(compiled, &ClientIdentity::None, OUTSIDE[0], port)
}

fn web() -> ClientIdentity {
    ClientIdentity::Mesh { dns: Some(WEB.to_owned()), spiffe: Some(WEB_URI.to_owned()) }
}

/// Whether a block that is written so holds an address. `None`: no block.
fn in_block(text: &str, address: &str) -> Option<bool> {
    let bits = |ip: IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => (4, u128::from(u32::from(ip)) << 96),
        IpAddr::V6(ip) => (6, u128::from(ip)),
    };
    let (network, length) = match text.split_once('/') {
        None => (text, None),
        Some((network, length)) => {
            let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
            (network, Some(length.parse::<u32>().ok().filter(|_| digits)?))
        }
    };
    let ip: IpAddr = network.parse().ok()?;
    let (family, own) = bits(ip);
    let (other, asked) = bits(address.parse().ok()?);
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let length = length.unwrap_or(most);
    if length > most {
        return None;
    }
    // A block of mapped addresses counts in the last 32 bits.
    let length = if ip.is_ipv6() && family == 4 { length.checked_sub(96) } else { Some(length) };
    let Some(length) = length else { return Some(true) };
    let mask = if length == 0 { 0 } else { u128::MAX << (128 - length) };
    Some(family == other && own & mask == asked & mask)
}

/// Whether a list of ports that is written so names a port. `None`: no such list.
fn in_ports(text: &str, port: u16, names: bool) -> Option<bool> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|it| digits && *it > 0)
    };
    if let Some(found) = number(text) {
        return Some(found == port);
    }
    if let Some((first, last)) = text.split_once('-')
        && let (Some(first), Some(last)) = (number(first.trim()), number(last.trim()))
    {
        return (first <= last).then_some((first..=last).contains(&port));
    }
    let name =
        text.len() <= 15 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (names && name && text.bytes().any(|b| b.is_ascii_lowercase())).then_some(text == "http" && port == 80)
}

fn block(text: &str) -> bool {
    let rules = server("opaque", "deny")
        + &format!(
            "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: NetworkAuthentication\nmetadata: {{name: n, namespace: shop}}\n\
             spec: {{networks: [{{cidr: {}}}]}}\n---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: shop}}\nspec: {{targetRef: {{group: policy.linkerd.io, kind: Server, name: web}}, \
             requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: NetworkAuthentication, name: n}}]}}\n",
            quoted(text)
        );
    let compiled = compiled("", &rules);
    let let_in: Vec<&str> =
        OUTSIDE.into_iter().filter(|it| lets(&compiled, &ClientIdentity::None, it, 80)).collect();
    for address in &let_in {
        assert_eq!(in_block(text, address), Some(true), "{text:?} lets {address} in");
    }
    !let_in.is_empty()
}

fn exception(text: &str) -> bool {
    let spec = format!(
        "{{action: Allow, ports: [80], from: [{{networks: [{{cidr: 192.0.2.0/24, except: [{}]}}]}}]}}",
        quoted(text)
    );
    let compiled = compiled("", &access_rule(&spec));
    let mut any = false;
    for address in OUTSIDE.into_iter().filter(|it| lets(&compiled, &ClientIdentity::None, it, 80)) {
        assert!(address.starts_with("192.0.2."), "{text:?} lets {address} in");
        assert_eq!(in_block(text, address), Some(false), "{text:?} lets {address} in");
        any = true;
    }
    any
}

fn ports(compiled: &Compiled, text: &str) -> bool {
    let mut any = false;
    for port in PORTS.into_iter().filter(|port| anybody(compiled, *port)) {
        assert_eq!(in_ports(text, port, true), Some(true), "{text:?} opens {port}");
        any = true;
    }
    any
}

fn port_of_a_rule(text: &str) -> bool {
    let spec = format!("{{action: Allow, ports: [{}], from: [{{anyone: true}}]}}", quoted(text));
    ports(&compiled("", &access_rule(&spec)), text)
}

fn port_of_a_server(text: &str) -> bool {
    let rule =
        server("opaque", "all-unauthenticated").replace("port: 80", &format!("port: {}", quoted(text)));
    ports(&compiled("", &rule), text)
}

fn default_policy(text: &str) -> bool {
    let compiled = compiled(&format!("config.linkerd.io/default-inbound-policy: {}", quoted(text)), "");
    let (nobody, known) = (anybody(&compiled, 80), lets(&compiled, &web(), OUTSIDE[0], 80));
    assert!(!nobody || ["all-unauthenticated", "audit"].contains(&text), "{text:?} lets anybody in");
    assert!(!known || ["all-unauthenticated", "all-authenticated", "audit"].contains(&text), "{text:?}");
    nobody
}

fn need_identity(text: &str) -> bool {
    let pod = format!(
        "config.linkerd.io/default-inbound-policy: all-unauthenticated, \
         config.linkerd.io/proxy-require-identity-inbound-ports: {}",
        quoted(text)
    );
    let compiled = compiled(&pod, "");
    let mut any = false;
    for port in PORTS.into_iter().filter(|port| anybody(&compiled, *port)) {
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            assert_eq!(in_ports(part, port, true), Some(false), "{text:?} leaves {port} open");
        }
        any = true;
    }
    any
}

fn names_web(text: &str) -> bool {
    let suffix = text.strip_prefix('*').filter(|rest| rest.starts_with('.') && rest.len() > 1);
    text == "*" || text == WEB || text == WEB_URI || suffix.is_some_and(|suffix| WEB.ends_with(suffix))
}

/// Whether a text is spelled as an identity can be.
fn is_identity(text: &str) -> bool {
    let label = |label: &str| {
        let fits = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        fits && !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
    };
    let name = text.strip_prefix("*.").unwrap_or(text);
    text == "*" || text.starts_with("spiffe://") || (name.len() <= 253 && name.split('.').all(label))
}

fn identity(text: &str) -> bool {
    let rules = server("opaque", "deny")
        + &format!(
            "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\nmetadata: {{name: m, namespace: shop}}\n\
             spec: {{identities: [{}]}}\n---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: shop}}\nspec: {{targetRef: {{group: policy.linkerd.io, kind: Server, name: web}}, \
             requiredAuthenticationRefs: [{{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}}]}}\n",
            quoted(text)
        );
    let compiled = compiled("", &rules);
    assert!(!anybody(&compiled, 80), "{text:?} lets nobody in particular in");
    let found = lets(&compiled, &web(), OUTSIDE[0], 80);
    assert!(!found || names_web(text), "{text:?} lets {WEB} in");
    found
}

fn denied_identity(text: &str) -> bool {
    let rules = access_rule("{action: Allow, ports: [80], from: [{anyone: true}]}")
        .replace("name: it", "name: all")
        + &access_rule(&format!("{{action: Deny, from: [{{identities: [{}]}}]}}", quoted(text)));
    let found = lets(&compiled("", &rules), &web(), OUTSIDE[0], 80);
    assert!(!found || is_identity(text) && !names_web(text), "{text:?} does not deny {WEB}");
    found
}

fn operator(text: &str) -> bool {
    let spec = format!(
        "{{action: Deny, podSelector: {{matchExpressions: [{{key: app, operator: {}, values: [server]}}]}}, from: [{{anyone: true}}]}}",
        quoted(text)
    );
    let rules = access_rule("{action: Allow, ports: [80], from: [{anyone: true}]}")
        .replace("name: it", "name: all")
        + &access_rule(&spec);
    let found = anybody(&compiled("", &rules), 80);
    assert!(!found || text == "NotIn", "{text:?} disarms a rule that denies");
    found
}

fn label(text: &str) -> bool {
    let spec = format!(
        "{{action: Allow, podSelector: {{matchLabels: {{app: {}}}}}, ports: [80], from: [{{anyone: true}}]}}",
        quoted(text)
    );
    let found = anybody(&compiled("", &access_rule(&spec)), 80);
    assert!(!found || text == "server", "{text:?}");
    found
}

fn routed(hosts: &str, path: &str) -> bool {
    let rules = server("HTTP/1", "all-unauthenticated")
        + &format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\n\
             spec: {{parentRefs: [{{group: policy.linkerd.io, kind: Server, name: web}}], hostnames: [{hosts}], rules: [{{matches: [{path}]}}]}}\n"
        );
    let compiled = compiled("", &rules);
    let request = Request { method: "GET", target: "/items/7?x=1", host: "api.shop.example", headers: &[] };
    compiled.decide_request(&connection(&ClientIdentity::None, OUTSIDE[0], 80), &request).decision.allowed()
}

fn host(text: &str) -> bool {
    let found = routed(&quoted(text), "{path: {type: PathPrefix, value: /}}");
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_suffix('.').unwrap_or(&lower);
    let meant = ["api.shop.example", "*.shop.example", "*.example"].contains(&name);
    assert!(!found || meant, "{text:?} is for api.shop.example");
    found
}

fn path(kind: &str, text: &str) -> bool {
    routed("", &format!("{{path: {{type: {kind}, value: {}}}}}", quoted(text)))
}

fn exact_path(text: &str) -> bool {
    let found = path("Exact", text);
    assert!(!found || text == "/items/7", "{text:?}");
    found
}

fn prefix(text: &str) -> bool {
    let found = path("PathPrefix", text);
    assert!(!found || ["", "/", "/items", "/items/", "/items/7", "/items/7/"].contains(&text), "{text:?}");
    found
}

fn expression(text: &str) -> bool {
    let found = path("RegularExpression", text);
    // Whatever takes the whole of it finds something in it; the other way round is what a half-hearted match would do.
    let somewhere = regex::Regex::new(text).is_ok_and(|it| it.is_match("/items/7"));
    assert!(!found || somewhere, "{text:?} takes /items/7");
    found
}

fn expiry(text: &str) -> bool {
    let spec = format!("{{action: Allow, expires: {}, ports: [80], from: [{{anyone: true}}]}}", quoted(text));
    let found = anybody(&compiled("", &access_rule(&spec)), 80);
    let year = text.get(..4).and_then(|year| year.parse::<u32>().ok());
    assert!(!found || year.is_some_and(|year| year >= 2026), "{text:?} is in force in 2026");
    found
}

fn action(text: &str) -> bool {
    let spec = format!("{{action: {}, ports: [80], from: [{{anyone: true}}]}}", quoted(text));
    let found = anybody(&compiled("", &access_rule(&spec)), 80);
    assert!(!found || text == "Allow", "{text:?}");
    found
}

fn mode(text: &str) -> bool {
    let rules = access_rule("{action: Allow, ports: [80], from: [{anyone: true}]}")
        .replace("name: it", "name: all")
        + &access_rule(&format!("{{action: Deny, mode: {}, from: [{{anyone: true}}]}}", quoted(text)));
    let found = anybody(&compiled("", &rules), 80);
    assert!(!found || text == "Audit", "{text:?} disarms a rule that denies");
    found
}
