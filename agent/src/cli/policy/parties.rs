//! Who asks and what is asked for, as a person names them.

use super::{
    Failure,
    picture::{Client, Picture, UNKNOWN_ADDRESS, account_elsewhere},
    port::{self, Port},
};
use crate::cluster::workload::workload_name;
use heddle_ebpf::Address;
use heddle_policy::{
    ClientIdentity, WorkloadInfo,
    names::{IdentityName, trust_domain_of},
    resources::{ObjectName, ServicePort, Transport},
};
use miette::miette;
use std::net::IpAddr;

/// How clients are named, for messages.
pub(super) const FROM: &str = "namespace/service-account, namespace/pod, an identity (web.shop.serviceaccount.identity.…, spiffe://…) or an IP address";
/// How destinations are named, for messages.
pub(super) const TO: &str = "namespace/pod:port, namespace/service:port, namespace/workload:port or address:port, with /udp behind for UDP";

/// A client as it was named, and what it turned out to be.
#[derive(Clone, Debug)]
pub(super) struct From {
    pub client: Client,
    /// What a person should know of how it was understood; empty: nothing.
    pub note: String,
}

/// A destination as it was named: every pod that it leads to.
#[derive(Clone, Debug)]
pub(super) struct To<'a> {
    pub ends: Vec<(&'a WorkloadInfo, Port)>,
    /// A destination that is no pod's.
    pub outside: Option<(IpAddr, Port)>,
    /// The address of a Service that was asked for.
    pub service: Option<(IpAddr, Port)>,
    pub note: String,
}

fn object(text: &str) -> Option<ObjectName> {
    let (namespace, name) = text.split_once('/')?;
    let fits = |part: &str| !part.is_empty() && !part.contains('/');
    (fits(namespace) && fits(name)).then(|| ObjectName::new(namespace, name))
}

/// Understands `--from`.
pub(super) fn from(picture: &Picture, text: &str) -> Result<From, Failure> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let address = address.to_canonical();
        let at = picture.pods().find(|pod| pod.addresses.contains(&address));
        return Ok(match at.and_then(|pod| Some((pod, picture.client_of(pod)?))) {
            Some((pod, client)) => {
                let note = format!("{address} is pod {}/{}", pod.namespace, pod.name);
                let node = Some(pod.node.clone());
                From { client: Client { address, node, ..client }, note }
            }
            None => {
                let name = address.to_string();
                From { client: Client::unidentified(address, name), note: String::new() }
            }
        });
    }
    let naming = &picture.settings().naming;
    if text.starts_with("spiffe://") || text.contains(".serviceaccount.identity.") {
        let federated = |it: &IdentityName| {
            trust_domain_of(it.spiffe())
                .is_some_and(|it| picture.settings().federated.iter().any(|own| own == it))
        };
        if let Some(account) = account_elsewhere(naming, text).filter(federated) {
            let client = Client::unidentified(UNKNOWN_ADDRESS, text.to_owned());
            let client = Client { foreign: Some(ClientIdentity::Account(account)), ..client };
            return Ok(From { client, note: "of a trust domain that is federated with".to_owned() });
        }
        let identity = naming.parse(text).map_err(|error| {
            miette!(
                help = "the trust domain is in --config, and so are those that are federated with",
                "--from {text}: {error}"
            )
        })?;
        return Ok(of_identity(picture, identity));
    }
    let unknown = |what: &str| miette!(help = format!("write {FROM}"), "--from {text}: {what}");
    let (only, rest) = match text.split('/').collect::<Vec<_>>().as_slice() {
        [kind @ ("sa" | "pod"), namespace, name] => (Some(*kind), format!("{namespace}/{name}")),
        _ => (None, text.to_owned()),
    };
    let name = object(&rest).ok_or_else(|| unknown("is no client"))?;
    if only != Some("pod") {
        let of_account = picture
            .pods()
            .any(|pod| pod.meshed() && pod.namespace == name.namespace && pod.service_account == name.name);
        let written = picture.index.resources().any(|it| {
            matches!(it, heddle_policy::resources::Resource::ServiceAccount(meta) if meta.object_name() == name)
        });
        if of_account || written || only == Some("sa") {
            let identity = naming
                .name(&name.namespace, &name.name)
                .map_err(|error| unknown(&format!("can be no service account: {error}")))?;
            return Ok(of_identity(picture, identity));
        }
    }
    let pod = picture.pod(&name).or_else(|| picture.pods_of(&name).next());
    let pod = pod.ok_or_else(|| unknown("no service account, pod or workload of this name is known"))?;
    let client = picture.client_of(pod).ok_or_else(|| unknown("the pod has no address yet"))?;
    let note = match &pod.identity {
        Some(identity) => {
            format!(
                "pod {}/{} is {}/{}",
                pod.namespace,
                pod.name,
                identity.namespace(),
                identity.service_account()
            )
        }
        None => format!("pod {}/{} is not meshed: it shows no identity", pod.namespace, pod.name),
    };
    let node = Some(pod.node.clone());
    Ok(From { client: Client { node, ..client }, note })
}

fn of_identity(picture: &Picture, identity: IdentityName) -> From {
    let mut pods = picture.pods().filter(|pod| pod.identity.as_ref() == Some(&identity));
    let name = format!("{}/{}", identity.namespace(), identity.service_account());
    let (address, note) = match (pods.next(), pods.next()) {
        (None, _) => (
            UNKNOWN_ADDRESS,
            "no pod with this identity is known: rules written in addresses are judged as not matching"
                .into(),
        ),
        (Some(pod), None) => (pod.addresses.first().copied().unwrap_or(UNKNOWN_ADDRESS), String::new()),
        (Some(pod), Some(_)) => (
            pod.addresses.first().copied().unwrap_or(UNKNOWN_ADDRESS),
            format!("of several pods with this identity, as if from {}/{}", pod.namespace, pod.name),
        ),
    };
    From { client: Client { identity: Some(identity), ..Client::unidentified(address, name) }, note }
}

/// Understands `--to`.
pub(super) fn to<'a>(picture: &'a Picture, text: &str) -> Result<To<'a>, Failure> {
    let wrong = |what: String| miette!(help = format!("write {TO}"), "--to {text}: {what}");
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("has no port".into()))?;
    let (port, transport) =
        port::split(port).ok_or_else(|| wrong(format!("{port:?} is of no protocol that rules are about")))?;
    let on = |number| Port { number, transport };
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        let address = address.to_canonical();
        let number = on(port.parse().map_err(|_| wrong(format!("{port:?} is no port")))?);
        let pod = picture.pods().find(|pod| pod.addresses.contains(&address));
        // Where a Service's connections go is its endpoints' affair. Datagrams are judged at the Service's address.
        if pod.is_none()
            && transport == Transport::Tcp
            && let Some(name) = picture.compiled.service(&Address::from(address))
            && let Ok(found) = to(picture, &format!("svc/{}/{}:{port}", name.namespace, name.name))
        {
            return Ok(found);
        }
        return Ok(match pod {
            Some(pod) => {
                let note = format!("{address} is pod {}/{}", pod.namespace, pod.name);
                To { ends: vec![(pod, number)], outside: None, service: None, note }
            }
            None => {
                To { ends: Vec::new(), outside: Some((address, number)), service: None, note: String::new() }
            }
        });
    }
    let (only, rest) = match host.split('/').collect::<Vec<_>>().as_slice() {
        ["svc" | "service", namespace, name] => (Some("service"), format!("{namespace}/{name}")),
        ["pod", namespace, name] => (Some("pod"), format!("{namespace}/{name}")),
        _ => (None, host.to_owned()),
    };
    let name = object(&rest).ok_or_else(|| wrong("is no destination".into()))?;
    let pods: Vec<&WorkloadInfo> = match picture.pod(&name) {
        Some(pod) => vec![pod],
        None => picture.pods_of(&name).collect(),
    };
    if !pods.is_empty() && only != Some("service") {
        let mut ends = Vec::new();
        for pod in pods {
            let declared = picture.declared_ports(pod);
            let named = || {
                let mut own = declared.iter().filter(|(it, _)| it.transport == transport);
                own.find(|(_, name)| *name == port).map(|(port, _)| *port)
            };
            let number = port.parse().ok().map(on).or_else(named);
            let number = number.filter(|it| it.number != 0).ok_or_else(|| {
                let protocol = if transport == Transport::Udp { "UDP" } else { "TCP" };
                wrong(format!(
                    "{port:?} is no port, and no {protocol} port that pod {}/{} declares",
                    pod.namespace, pod.name
                ))
            })?;
            ends.push((pod, number));
        }
        let service = only.is_none() && picture.service(&name).is_some();
        let note = if service {
            format!("{name} is a Service too: write svc/{name}:{port} for it")
        } else {
            String::new()
        };
        return Ok(To { ends, outside: None, service: None, note });
    }
    let service = picture
        .service(&name)
        .filter(|_| only != Some("pod"))
        .ok_or_else(|| wrong(format!("no pod, workload or Service {name} is known")))?;
    let own = |it: &&ServicePort| port.parse() == Ok(it.port) && it.transport == transport;
    let asked = service.ports.iter().find(own).ok_or_else(|| {
        let port_of = |it: &ServicePort| Port { number: it.port, transport: it.transport };
        let ports: Vec<_> = service.ports.iter().map(|it| port_of(it).to_string()).collect();
        wrong(format!("Service {name} has no port {port}: its ports are {}", ports.join(", ")))
    })?;
    let ends = picture.endpoints(service, asked);
    if ends.is_empty() {
        return Err(wrong(format!("Service {name} selects no pod that is known")));
    }
    let names: Vec<_> =
        ends.iter().map(|(pod, port)| format!("{}/{}:{port}", pod.namespace, pod.name)).collect();
    let note = format!("Service {name} leads to {}", shortened(&names, 3));
    let service = service.addresses.first().map(|address| (*address, on(asked.port)));
    Ok(To { ends, outside: None, service, note })
}

/// The workload of a pod, as `namespace/name`.
pub(super) fn workload(pod: &WorkloadInfo) -> String {
    format!("{}/{}", pod.namespace, workload_name(&pod.name, &pod.labels))
}

/// The first of a list, and how many more there are.
pub(super) fn shortened(all: &[String], most: usize) -> String {
    match all.len() {
        n if n <= most + 1 => all.join(", "),
        n => format!("{} and {} more", all[..most].join(", "), n - most),
    }
}
