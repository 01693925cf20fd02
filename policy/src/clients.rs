//! Who a client is, and which identities a rule means.

use crate::{
    names::{IdentityName, IdentityNaming, check_dns_name},
    resources::{IdentityMatch, ObjectName},
};

/// Who a client is, as its certificate says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ClientIdentity {
    /// It speaks no mesh TLS.
    None,
    /// It completed mesh TLS and showed no certificate.
    Anonymous,
    /// It showed the certificate of a service account, whose names were read when the handshake ended, so that no decision
    /// about it has to. One of another trust domain's is judged by its names.
    Account(IdentityName),
    /// It showed a certificate of a service account that bears the SPIFFE form alone: what allows must name it whole.
    SpiffeAlone(IdentityName),
    /// It showed a certificate, which was verified, with these names.
    Mesh {
        /// The DNS form.
        dns: Option<String>,
        /// The SPIFFE form.
        spiffe: Option<String>,
    },
}

impl From<&IdentityName> for ClientIdentity {
    fn from(name: &IdentityName) -> Self {
        Self::Account(name.clone())
    }
}

/// An identity that a rule names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Match {
    /// Every mesh identity.
    Any,
    /// One of ours, by its DNS form, in whichever form it is shown.
    Name(String),
    /// Every service account of a namespace.
    Namespace(String),
    /// Every DNS form that ends in this.
    Suffix(String),
    /// A DNS form that is not a service account's of ours.
    Dns(String),
    /// A SPIFFE form that is not a service account's of ours.
    Spiffe(String),
}

/// A client's names, as its certificate or the kernel vouches for them: whole, and in agreement with each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Presented<'a> {
    /// The namespace, if it is a service account of ours.
    pub(crate) namespace: Option<&'a str>,
    /// The name in its DNS form; empty: it has none.
    pub(crate) dns: &'a str,
    /// The SPIFFE form, where it is not a service account's of ours; empty: none.
    pub(crate) spiffe: &'a str,
    /// It is another trust domain's, or its certificate lacks the DNS form: what allows must name it.
    pub(crate) foreign: bool,
}

impl<'a> Presented<'a> {
    /// The names of a service account of ours.
    pub(crate) fn of(name: &'a IdentityName) -> Self {
        Self { namespace: Some(name.namespace()), dns: name.dns(), spiffe: "", foreign: false }
    }

    /// The names of a certificate; a DNS form of a SPIFFE name of ours is written into `buffer`. `None`: there is none,
    /// one is malformed, or the two disagree.
    pub(crate) fn read(
        naming: &IdentityNaming,
        dns: Option<&'a str>,
        spiffe: Option<&'a str>,
        buffer: &'a mut String,
    ) -> Option<Self> {
        let own = |namespace, dns| Self { namespace: Some(namespace), dns, spiffe: "", foreign: false };
        let other = |dns, spiffe| {
            let foreign = naming.is_foreign(dns, spiffe);
            Self { namespace: None, dns, spiffe, foreign }
        };
        let own_dns = match dns {
            None => None,
            Some(text) => {
                check_dns_name(text).ok()?;
                naming.split_dns(text)
            }
        };
        match (dns, spiffe) {
            (None, None) | (_, Some("")) => None,
            (Some(dns), None) => Some(own_dns.map_or_else(|| other(dns, ""), |it| own(it.0, dns))),
            // One name in two forms, or two names of which neither is a service account's of ours.
            (Some(dns), Some(spiffe)) => match own_dns {
                Some((namespace, account)) => {
                    naming.is_spiffe_of(spiffe, namespace, account).then(|| own(namespace, dns))
                }
                None => naming.split_spiffe(spiffe).is_none().then(|| other(dns, spiffe)),
            },
            (None, Some(spiffe)) => match naming.split_spiffe(spiffe) {
                None => Some(other("", spiffe)),
                Some((namespace, account)) => {
                    naming.write_dns(namespace, account, buffer);
                    Some(own(namespace, buffer))
                }
            },
        }
    }
}

impl Match {
    /// Whether a rule that allows means the client by this: another trust domain's only where it is named whole.
    pub(crate) fn allows(&self, client: &Presented<'_>) -> bool {
        let by_name = matches!(self, Self::Name(_) | Self::Dns(_) | Self::Spiffe(_));
        (by_name || !client.foreign) && self.holds(client)
    }

    /// Whether the client is meant by this, whosever it is: for rules that deny.
    pub(crate) fn holds(&self, client: &Presented<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Name(name) => client.namespace.is_some() && client.dns == name,
            Self::Namespace(namespace) => client.namespace == Some(namespace),
            // A suffix begins with a dot, as no name does: something stands before it.
            Self::Suffix(suffix) => client.dns.ends_with(suffix.as_str()),
            Self::Dns(dns) => client.namespace.is_none() && client.dns == dns,
            Self::Spiffe(spiffe) => client.spiffe == spiffe,
        }
    }

    /// As people read it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Any => "*".to_owned(),
            Self::Name(text) | Self::Dns(text) | Self::Spiffe(text) => text.clone(),
            Self::Namespace(namespace) => format!("every service account of namespace {namespace}"),
            Self::Suffix(suffix) => format!("*{suffix}"),
        }
    }

    /// An entry of a rule in terms of identities. `None`: nobody can have it.
    pub(crate) fn resolve(entry: &IdentityMatch, naming: &IdentityNaming) -> Option<Self> {
        let own = |name: IdentityName| Self::Name(name.dns().to_owned());
        Some(match entry {
            IdentityMatch::Any => Self::Any,
            IdentityMatch::Suffix(suffix) => Self::Suffix(suffix.clone()),
            IdentityMatch::Dns(dns) => naming.parse_dns(dns).map_or_else(|_| Self::Dns(dns.clone()), own),
            IdentityMatch::Spiffe(id) => {
                naming.parse_spiffe(id).map_or_else(|_| Self::Spiffe(id.clone()), own)
            }
            IdentityMatch::ServiceAccount(account) => Self::account(account, naming)?,
            IdentityMatch::Namespace(namespace) => Self::Namespace(namespace.clone()),
        })
    }

    pub(crate) fn account(account: &ObjectName, naming: &IdentityNaming) -> Option<Self> {
        let name = naming.name(&account.namespace, &account.name).ok()?;
        Some(Self::Name(name.dns().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use crate::grants::Who;

    use super::*;

    #[test]
    fn an_entry_holds_for_whom_it_means_and_for_nobody_else() {
        let presented = |namespace, dns, spiffe| Presented { namespace, dns, spiffe, foreign: false };
        let web = presented(Some("shop"), "web.shop.example", "");
        let foreign = presented(None, "web.far.example", "");
        let only_spiffe = presented(None, "", "spiffe://far/web");
        for (entry, holds) in [
            (Match::Any, [true, true, true]),
            (Match::Name("web.shop.example".to_owned()), [true, false, false]),
            (Match::Dns("web.far.example".to_owned()), [false, true, false]),
            (Match::Namespace("shop".to_owned()), [true, false, false]),
            (Match::Suffix(".shop.example".to_owned()), [true, false, false]),
            (Match::Suffix(".example".to_owned()), [true, true, false]),
            (Match::Suffix(".longer.than.any.of.them.example".to_owned()), [false; 3]),
            (Match::Suffix(".a".to_owned()), [false; 3]),
            (Match::Spiffe("spiffe://far/web".to_owned()), [false, false, true]),
        ] {
            assert_eq!([web, foreign, only_spiffe].map(|it| entry.holds(&it)), holds, "{entry:?}");
        }
    }
    /// A name that was read once is of a trust domain all the same.
    #[test]
    fn another_trust_domains_account_is_nobody_of_ours() {
        let (own, far) = (IdentityNaming::default(), IdentityNaming::new("linkerd", "far.example").unwrap());
        let (ours, theirs) = (own.name("shop", "web").unwrap(), far.name("shop", "web").unwrap());
        let foreign =
            |name: &IdentityName| match Who::of(&ClientIdentity::from(name), &own, &mut String::new()) {
                Some(Who::Known(client)) => client.foreign && client.namespace.is_none(),
                other => panic!("{other:?}"),
            };
        assert!(foreign(&theirs) && !foreign(&ours));
    }

    /// Who shows the SPIFFE form alone is let in by rules that name it whole, in either form; what denies means it like anybody.
    #[test]
    fn a_spiffe_name_alone_is_let_in_by_its_whole_name_alone() {
        let naming = IdentityNaming::default();
        let name = naming.name("shop", "web").unwrap();
        let (alone, whole) = (ClientIdentity::SpiffeAlone(name.clone()), ClientIdentity::from(&name));
        let entries = [
            (IdentityMatch::Spiffe(name.spiffe().to_owned()), true),
            (IdentityMatch::Dns(name.dns().to_owned()), true),
            (IdentityMatch::ServiceAccount(ObjectName::new("shop", "web")), true),
            (IdentityMatch::ServiceAccount(ObjectName::new("shop", "db")), false),
            (IdentityMatch::Any, false),
            (IdentityMatch::Namespace("shop".to_owned()), false),
            (IdentityMatch::Suffix(".shop.serviceaccount.identity.linkerd.cluster.local".to_owned()), false),
        ];
        for (entry, lets_in) in entries {
            let of_db = entry == IdentityMatch::ServiceAccount(ObjectName::new("shop", "db"));
            let entry = Match::resolve(&entry, &naming).unwrap();
            for (client, allowed, denied) in [(&alone, lets_in, !of_db), (&whole, !of_db, !of_db)] {
                let mut buffer = String::new();
                let Some(Who::Known(client)) = Who::of(client, &naming, &mut buffer) else { panic!() };
                assert_eq!((entry.allows(&client), entry.holds(&client)), (allowed, denied), "{entry:?}");
            }
        }
    }

    /// Another trust domain's workload is let in by its whole name alone; what denies means it like anybody.
    #[test]
    fn another_trust_domains_name_must_be_named() {
        let naming = IdentityNaming::default();
        let far_dns = "web.shop.serviceaccount.identity.linkerd.far.example";
        let far = "spiffe://far.example/ns/shop/sa/web";
        let (mut a, mut b, mut c) = (String::new(), String::new(), String::new());
        let clients = [
            Presented::read(&naming, Some(far_dns), Some(far), &mut a).unwrap(),
            Presented::read(&naming, None, Some(far), &mut b).unwrap(),
            Presented::read(&naming, Some(far_dns), None, &mut c).unwrap(),
        ];
        assert!(clients.iter().all(|client| client.foreign));
        let wide =
            [Match::Any, Match::Suffix(".far.example".to_owned()), Match::Namespace("shop".to_owned())];
        for client in &clients {
            assert!(wide.iter().all(|entry| !entry.allows(client)), "{client:?}");
            assert!(Match::Any.holds(client), "{client:?}");
            let whole = [Match::Dns(far_dns.to_owned()), Match::Spiffe(far.to_owned())];
            assert!(whole.iter().any(|entry| entry.allows(client)), "{client:?}");
        }
        // The control: names of our own domain that are no service account's, and names of nobody's domain.
        let mut buffer = String::new();
        let vm = Presented::read(&naming, None, Some("spiffe://cluster.local/vm"), &mut buffer).unwrap();
        assert!(!vm.foreign && Match::Any.allows(&vm));
        let mut buffer = String::new();
        let vm = Presented::read(&naming, Some("vm.far.example"), None, &mut buffer).unwrap();
        assert!(!vm.foreign && Match::Any.allows(&vm));
    }
}
