//! `heddle policy explain`: why a client may or may not reach a destination.

use super::{
    Failure, Output,
    asked::{Asked, AskedFlags},
    parties::{self, From, To},
    picture::{Client, Judged, Picture, address_for, datagram},
    port::Port,
    source::Rules,
};
use crate::cli::render::print;
use heddle_ebpf::{
    Address,
    codes::{Outcome, Reason},
};
use heddle_policy::{Connection, Effect, Hop, Problem, Request, Route, Step, WorkloadInfo};
use serde::Serialize;
use std::{net::IpAddr, process::ExitCode};

pub(super) const ABOUT: &str = "Says whether a client may reach a destination, by which rule, and which other rules were considered and why each of them did \
or did not match. Ends with 0 whatever the verdict is (`heddle policy test` holds rules against what is expected).

  heddle policy explain --from shop/web --to shop/redis:6379 ./manifests
  heddle policy explain --from 203.0.113.7 --to svc/shop/redis:6379 ./manifests
  heddle policy explain --from shop/web --to shop/api:8080 --method POST --path /orders --header 'x-tenant: a' ./manifests
  heddle policy explain --from shop/web --to shop/stats:8125/udp ./manifests
  heddle policy explain --from shop/web --to shop/redis:6379 --socket /run/heddle/agent.sock --output json";

/// The arguments.
#[derive(clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The client: namespace/service-account, namespace/pod, an identity or an IP address
    #[arg(long, value_name = "WHO")]
    from: String,
    /// The destination: namespace/pod:port, namespace/service:port, namespace/workload:port or address:port; with /udp behind for UDP
    #[arg(long, value_name = "WHERE")]
    to: String,
    #[command(flatten)]
    request: AskedFlags,
    #[command(flatten)]
    rules: Rules,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What was found of one end.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained {
    to: String,
    verdict: &'static str,
    reason: &'static str,
    /// What the reason means.
    means: &'static str,
    rule: String,
    /// What governs the port.
    governs: String,
    /// What the port speaks.
    protocol: String,
    /// Whether requests must be read for a verdict, and none was given: then a `GET /` was judged.
    sampled: bool,
    /// A rule that is only tried and would turn the verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried: Option<String>,
    /// Every rule that was considered, in order.
    considered: Vec<Step>,
    /// What is wrong with rules that may have been meant to apply.
    problems: Vec<Problem>,
}

/// What becomes of a connection to each end of a destination, and what people call the end.
pub(super) fn judge_all(
    picture: &Picture,
    client: &Client,
    to: &To<'_>,
    request: Option<&Request<'_>>,
) -> Vec<(String, Judged)> {
    let ends = to.ends.iter().map(|(pod, port)| {
        let judged = match to.service.filter(|_| port.is_udp()) {
            Some(asked) if asks_for_names(picture, client, asked) => {
                picture.judge_leaving(client, &Address::from(asked.0), asked.1.number)
            }
            // Nobody turns a datagram to an endpoint before it leaves.
            Some(_) if leads_to_mesh(to) => Judged::refused(Reason::PlainToMeshed, ""),
            _ => picture.judge(client, pod, *port, request),
        };
        (format!("{}/{}:{port}", pod.namespace, pod.name), judged)
    });
    let outside = to.outside.iter().map(|(address, port)| {
        (format!("{address}:{port}"), judge_outside(picture, client, *address, *port))
    });
    ends.chain(outside).collect()
}

/// Whether this is a name asked for at the cluster's DNS Service, of which the client's own node decides.
fn asks_for_names(picture: &Picture, client: &Client, (address, port): (IpAddr, Port)) -> bool {
    let left = picture.judge_leaving(client, &Address::from(address), port.number);
    client.identity.is_some() && port.number == 53 && (left.allowed || left.reason == Reason::Denied)
}

/// Whether a Service that was asked for has a meshed endpoint.
fn leads_to_mesh(to: &To<'_>) -> bool {
    to.ends.iter().any(|(pod, _)| pod.meshed())
}

/// A destination that is no pod's: the client's node judges alone.
fn judge_outside(picture: &Picture, client: &Client, address: IpAddr, port: Port) -> Judged {
    let plain = |allowed, reason, rule: &str| Judged { allowed, ..Judged::refused(reason, rule) };
    if client.identity.is_none() {
        return plain(true, Reason::PlainOutside, "");
    }
    if port.is_udp() {
        return picture.judge_leaving(client, &Address::from(address), port.number);
    }
    let captured = |at: &Address| picture.compiled.workload(at).filter(|it| it.meshed()).map(|it| it.digest);
    let (from, to) = (Address::from(client.address), Address::from(address));
    match picture.compiled.outbound(&from, &to, port.number, captured, 0) {
        Route::Refuse(decision) => plain(false, decision.verdict.reason, &decision.rule),
        Route::To { endpoints, .. } => match endpoints.into_iter().next().map(|it| it.hop) {
            Some(
                Hop::Plain(it)
                | Hop::Mesh { decision: it, .. }
                | Hop::External { decision: it, .. }
                | Hop::Refuse(it),
            ) => plain(it.verdict.outcome != Outcome::Refuse, it.verdict.reason, &it.rule),
            None => plain(false, Reason::NoEndpoints, ""),
        },
    }
}

fn explain(picture: &Picture, from: &From, to: &To<'_>, request: Option<&Request<'_>>) -> Vec<Explained> {
    let judged = judge_all(picture, &from.client, to, request);
    let ends = to.ends.iter().map(|(pod, port)| Some((*pod, *port))).chain(to.outside.iter().map(|_| None));
    judged
        .into_iter()
        .zip(ends)
        .map(|((to, judged), end)| {
            let mut one = Explained {
                to,
                verdict: judged.word(),
                reason: judged.reason.as_str(),
                means: judged.reason.explain().trim(),
                rule: judged.rule,
                governs: String::new(),
                protocol: String::new(),
                sampled: judged.sampled,
                tried: judged.tried,
                considered: Vec::new(),
                problems: Vec::new(),
            };
            if let Some((pod, port)) = end {
                rules_of(picture, &from.client, pod, port, request, &mut one);
                leaving_first(&mut one);
            }
            one
        })
        .collect()
}

/// Where a rule about what leaves the client refuses, it decides before any of the destination's.
fn leaving_first(one: &mut Explained) {
    if one.reason != Reason::Denied.as_str() || one.considered.iter().any(|step| step.rule == one.rule) {
        return;
    }
    one.considered.iter_mut().for_each(|step| step.decided = false);
    let why = vec!["it is about what leaves the client, and judged on the client's node".to_owned()];
    let rule = one.rule.clone();
    one.considered.insert(0, Step { rule, effect: Effect::Denies, matched: true, decided: true, why });
}

fn rules_of(
    picture: &Picture,
    client: &Client,
    pod: &WorkloadInfo,
    port: Port,
    request: Option<&Request<'_>>,
    one: &mut Explained,
) {
    let Some(server) = address_for(client, pod) else { return };
    let identity = client.shows();
    let connection = Connection { client: &identity, address: client.address, server, port: port.number };
    let any = Request { method: "GET", target: "/", ..Request::default() };
    let request = request.or(one.sampled.then_some(&any));
    let explained = match port.is_udp() {
        true => picture.compiled.explain_datagram(&datagram(client, pod, server, port)),
        false => picture.compiled.explain(&connection, request),
    };
    one.governs = if explained.governs.is_empty() {
        "nothing: the pod is not meshed".to_owned()
    } else {
        explained.governs
    };
    one.protocol = explained.protocol;
    one.considered = explained.chain;
    // A rule with a fault may be the one that was meant to allow this.
    let of_namespace = |problem: &&Problem| {
        let name = problem.resource.split_once(' ').map_or("", |(_, name)| name);
        let kind = problem.resource.split(' ').next().unwrap_or_default();
        name.split_once('/').is_some_and(|(namespace, _)| namespace == pod.namespace)
            && !matches!(kind, "Pod" | "Service" | "ServiceAccount")
            && problem.severity != heddle_policy::Severity::Note
    };
    one.problems = picture.problems.iter().filter(of_namespace).cloned().collect();
}

const fn effect(step: &Step) -> &'static str {
    match (step.matched, step.effect) {
        (true, Effect::Denies) => "denies",
        (true, Effect::Allows) if step.decided => "decides",
        (true, Effect::Allows) => "allows too",
        (true, Effect::WouldDeny) => "would deny",
        (true, Effect::WouldAllow) => "would allow",
        (true, Effect::Takes) => "takes it",
        (false, _) => "no match",
    }
}

fn text(from: &From, explained: &[Explained], notes: &[&str]) -> String {
    let mut out = String::new();
    for note in notes.iter().filter(|note| !note.is_empty()) {
        out += &format!("note: {note}\n");
    }
    let who = match (&from.client.identity, &from.client.foreign) {
        (Some(identity), _) => format!("{} ({identity}, at {})", from.client.name, from.client.address),
        (None, Some(_)) => {
            format!("{} (of another trust domain, at {})", from.client.name, from.client.address)
        }
        (None, None) => format!("{} (no identity, at {})", from.client.name, from.client.address),
    };
    for one in explained {
        out += &format!("{}  {who} -> {}\n", one.verdict.to_uppercase(), one.to);
        let by = if one.rule.is_empty() { "no rule" } else { &one.rule };
        let means = one.means.trim_end_matches('.');
        out += &match one.verdict {
            "refused" => format!("  because    {means} ({})\n", one.reason),
            "audit" => format!("  by         {by}: a deny would refuse it\n"),
            _ => format!("  by         {by} ({})\n", one.reason),
        };
        if one.sampled {
            out += "  judged     as GET /: routes divide requests; give --method and --path\n";
        }
        if let Some(tried) = &one.tried {
            out += &format!("  tried      {tried} would turn it\n");
        }
        if !one.governs.is_empty() {
            let protocol =
                if one.protocol.is_empty() { String::new() } else { format!(" ({})", one.protocol) };
            out += &format!("  governs    {}{protocol}\n", one.governs);
        }
        for (i, step) in one.considered.iter().enumerate() {
            out += &format!("  {:>2}. {:<11} {}\n", i + 1, effect(step), step.rule);
            for why in &step.why {
                out += &format!("                  {why}\n");
            }
        }
        if one.considered.is_empty() && !one.governs.is_empty() {
            out += "   no rule allows anybody on this port\n";
        }
        if one.verdict == "refused" {
            for problem in &one.problems {
                out += &format!("  see also   {problem}\n");
            }
        }
    }
    out.trim_end().to_owned()
}

fn explain_asked(picture: &Picture, from: &From, to: &To<'_>, asked: Option<&Asked>) -> Vec<Explained> {
    match asked {
        Some(asked) => asked.with(|request| explain(picture, from, to, Some(request))),
        None => explain(picture, from, to, None),
    }
}

/// Runs the command.
pub(in crate::cli) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let picture = Picture::of(arguments.rules.read()?);
    let from = parties::from(&picture, &arguments.from)?;
    let to = parties::to(&picture, &arguments.to)?;
    let asked = arguments.request.asked()?;
    let udp = to.ends.iter().map(|(_, port)| port).chain(to.outside.iter().map(|(_, port)| port));
    if asked.is_some() && udp.copied().any(Port::is_udp) {
        return Err(miette::miette!(help = "leave --method and the like out", "a datagram has no request"));
    }
    let explained = explain_asked(&picture, &from, &to, asked.as_ref());
    print(&match arguments.output {
        Output::Text => text(&from, &explained, &[&from.note, &to.note]),
        Output::Json => serde_json::json!({
            "from": {
                "name": from.client.name, "address": from.client.address,
                "identity": from.client.identity.as_ref().map(|it| it.dns().to_owned()), "note": from.note,
            },
            "request": asked.as_ref().map(Asked::describe),
            "note": to.note,
            "ends": explained,
        })
        .to_string(),
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::policy::testing::{self, SHOP};

    fn explained(from: &str, to: &str) -> String {
        let picture = testing::shop();
        let (from, to) = (parties::from(&picture, from).unwrap(), parties::to(&picture, to).unwrap());
        text(&from, &explain(&picture, &from, &to, None), &[&from.note, &to.note])
    }

    #[test]
    fn what_is_allowed_names_its_rule_and_the_others() {
        insta::assert_snapshot!(explained("shop/web", "shop/redis:6379"));
    }

    #[test]
    fn what_is_refused_says_what_each_rule_demands() {
        insta::assert_snapshot!(explained("shop/stranger", "svc/shop/redis:6379"));
    }

    #[test]
    fn a_client_of_a_federated_trust_domain_is_judged_by_its_name() {
        let far = "web.shop.serviceaccount.identity.linkerd.far.example";
        let picture = |federated: &[&str]| {
            let rule = format!(
                "{{apiVersion: heddle.io/v1alpha1, kind: AccessRule, metadata: {{name: far, namespace: shop}}, spec: {{action: Allow, \
                 podSelector: {{matchLabels: {{app: redis}}}}, from: [{{identities: [{far}]}}]}}}}"
            );
            let mut source =
                testing::source("manifests/shop.yaml", &format!("{}\n---\n{rule}\n", testing::SHOP));
            source.settings.federated = federated.iter().map(|it| (*it).to_owned()).collect();
            Picture::of(source)
        };
        let known = picture(&["far.example"]);
        for (from, allowed) in [
            (far, true),
            ("spiffe://far.example/ns/shop/sa/web", true),
            ("spiffe://far.example/ns/shop/sa/other", false),
        ] {
            let from = parties::from(&known, from).unwrap();
            let to = parties::to(&known, "shop/redis:6379").unwrap();
            let judged = judge_all(&known, &from.client, &to, None);
            assert!(judged.iter().all(|(_, it)| it.allowed == allowed), "{from:?}: {judged:?}");
        }
        assert!(parties::from(&picture(&[]), far).is_err(), "nobody believes its trust domain");
    }

    #[test]
    fn an_address_has_no_identity_and_a_pods_address_has_its_pods() {
        insta::assert_snapshot!(explained("203.0.113.7", "shop/redis:6379"));
        assert!(explained("10.1.0.1", "shop/redis:6379").starts_with("note: 10.1.0.1 is pod shop/web"));
    }

    const API: &str = "---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: api, namespace: shop}
spec: {podSelector: {matchLabels: {app: redis}}, port: 8080, proxyProtocol: HTTP/1}
---
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {name: reads, namespace: shop}
spec:
  parentRefs: [{group: policy.linkerd.io, kind: Server, name: api}]
  rules: [{matches: [{method: GET, path: {type: PathPrefix, value: /items}}]}]
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRef: {group: policy.linkerd.io, kind: HTTPRoute, name: reads}
  requiredAuthenticationRefs: [{kind: ServiceAccount, name: web}]
";

    #[test]
    fn a_request_is_judged_by_the_route_that_takes_it() {
        let picture = testing::picture(&format!("{SHOP}{API}"));
        let to = parties::to(&picture, "shop/redis:8080").unwrap();
        let ask = |from: &str, method: &str, path: &str| {
            let from = parties::from(&picture, from).unwrap();
            let request = Request { method, target: path, ..Request::default() };
            text(&from, &explain(&picture, &from, &to, Some(&request)), &[])
        };
        insta::assert_snapshot!(ask("shop/web", "GET", "/items/7"));
        assert!(ask("shop/stranger", "GET", "/items/7").starts_with("REFUSED"));
        assert!(ask("shop/web", "POST", "/items/7").contains("(no_route)"));
        // Without a request the answer says what it stands for.
        let from = parties::from(&picture, "shop/web").unwrap();
        let sampled = text(&from, &explain(&picture, &from, &to, None), &[]);
        assert!(sampled.contains("judged     as GET /"), "{sampled}");
    }

    #[test]
    fn audit_lets_pass_and_says_so() {
        insta::assert_snapshot!(explained("shop/stranger", "shop/web:80"));
    }

    #[test]
    fn a_destination_outside_is_judged_by_the_clients_node() {
        insta::assert_snapshot!(explained("shop/web", "198.51.100.1:443"));
    }

    #[test]
    fn what_the_clients_own_rules_forbid_is_refused_at_meshed_pods_too() {
        let ask = |rules: &str, from: &str, to: &str| {
            let picture = testing::picture(rules);
            let (from, to) = (parties::from(&picture, from).unwrap(), parties::to(&picture, to).unwrap());
            text(&from, &explain(&picture, &from, &to, None), &[])
        };
        let deny = |spec: &str| format!("{SHOP}---\n{{apiVersion: {spec}}}\n");
        let heddle = |to: &str| {
            deny(&format!(
                "heddle.io/v1alpha1, kind: AccessRule, metadata: {{name: no-redis, namespace: shop}}, \
                 spec: {{action: Deny, podSelector: {{matchLabels: {{app: web}}}}, to: [{to}]}}"
            ))
        };
        assert!(ask(SHOP, "shop/web", "shop/redis:6379").starts_with("ALLOWED"), "the control");
        for rules in [
            heddle("{serviceAccounts: [{name: redis}]}"),
            heddle("{networks: [{cidr: 10.0.0.0/8}]}"),
            deny(
                "policy.linkerd.io/v1alpha1, kind: EgressNetwork, metadata: {name: inside, namespace: shop}, \
                 spec: {trafficPolicy: Deny, networks: [{cidr: 10.0.0.0/8}]}",
            ),
        ] {
            let refused = ask(&rules, "shop/web", "shop/redis:6379");
            assert!(refused.starts_with("REFUSED") && refused.contains("(denied)"), "{refused}");
            let first = refused.lines().find(|line| line.starts_with("   1. denies")).unwrap_or_default();
            let named =
                first.ends_with("AccessRule shop/no-redis") || first.ends_with("EgressNetwork shop/inside");
            assert!(named && !refused.contains(". decides"), "{refused}");
        }
    }

    #[test]
    fn a_services_address_is_judged_as_its_name_is() {
        let picture = testing::picture(SHOP);
        let address = picture.service(&heddle_policy::resources::ObjectName::new("shop", "redis")).unwrap();
        let to = format!("{}:6379", address.addresses[0]);
        let ask = |from: &str, to: &str| {
            let (from, to) = (parties::from(&picture, from).unwrap(), parties::to(&picture, to).unwrap());
            text(&from, &explain(&picture, &from, &to, None), &[])
        };
        for (from, word) in [("198.51.100.9", "REFUSED"), ("shop/web", "ALLOWED")] {
            let by_name = ask(from, "svc/shop/redis:6379");
            assert!(by_name.starts_with(word), "{by_name}");
            assert_eq!(ask(from, &to), by_name);
        }
    }

    const STATS: &str = "---
apiVersion: heddle.io/v1alpha1
kind: AccessRule
metadata: {name: stats, namespace: shop}
spec: {action: Allow, protocol: UDP, podSelector: {matchLabels: {app: redis}}, ports: [8125], from: [{serviceAccounts: [{name: web}]}]}
---
{apiVersion: v1, kind: Service, metadata: {name: stats, namespace: shop}, spec: {clusterIP: 10.96.0.77, selector: {app: redis}, ports: [{port: 8125, protocol: UDP}]}}
";

    #[test]
    fn a_port_for_udp_is_judged_by_the_rules_that_name_udp() {
        let rules = format!("{SHOP}{STATS}");
        let (apart, rules) = (rules.clone(), rules.replace("nodeName: b", "nodeName: a"));
        assert_ne!(rules, apart);
        let ask = |rules: &str, from: &str, to: &str| {
            let picture = testing::picture(rules);
            let (from, to) = (parties::from(&picture, from).unwrap(), parties::to(&picture, to).unwrap());
            text(&from, &explain(&picture, &from, &to, None), &[])
        };
        let allowed = ask(&rules, "sa/shop/web", "shop/redis:8125/udp");
        assert!(
            allowed.starts_with("ALLOWED") && allowed.contains(" 1. decides     AccessRule shop/stats"),
            "{allowed}"
        );
        assert!(allowed.contains("shop/redis-0:8125/udp"), "{allowed}");
        for (rules, from, to, reason) in [
            (&rules, "sa/shop/stranger", "shop/redis:8125/udp", "(unauthorized)"),
            (&rules, "sa/shop/web", "shop/redis:8126/udp", "(unauthorized)"),
            (&rules, "sa/shop/web", "shop/redis:8125", "(unauthorized)"),
            (&rules, "203.0.113.7", "shop/redis:8125/udp", "(no_identity)"),
            (&rules, "sa/shop/web", "svc/shop/stats:8125/udp", "(plain_to_meshed)"),
            // One particular pod runs on one particular node.
            (&apart, "pod/shop/web-7d9f-x2x4z", "shop/redis:8125/udp", "(plain_to_meshed)"),
        ] {
            let refused = ask(rules, from, to);
            assert!(refused.starts_with("REFUSED") && refused.contains(reason), "{from} {to}: {refused}");
        }
        assert!(
            ask(&rules, "pod/shop/web-7d9f-x2x4z", "shop/redis:8125/udp").starts_with("ALLOWED"),
            "the control"
        );
        let picture = testing::picture(&rules);
        let error = parties::to(&picture, "shop/redis:8125/sctp").unwrap_err().to_string();
        assert!(error.contains("of no protocol"), "{error}");
    }

    #[test]
    fn who_is_not_there_is_told_with_what_to_write() {
        let picture = testing::shop();
        for (name, part) in [("shop/nobody", "no service account, pod or workload"), ("x", "is no client")] {
            assert!(parties::from(&picture, name).unwrap_err().to_string().contains(part), "{name}");
        }
        for (name, part) in [
            ("shop/redis", "has no port"),
            ("shop/redis:https", "declares"),
            ("svc/shop/redis:1", "its ports are 6379"),
            ("shop/nobody:1", "no pod, workload or Service"),
        ] {
            assert!(parties::to(&picture, name).unwrap_err().to_string().contains(part), "{name}");
        }
    }
}
