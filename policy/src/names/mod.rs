//! The names that certificates carry: a service account's identity in its DNS form and its SPIFFE form.
//!
//! A name is parsed strictly or not at all. Nothing is ever normalized: a name that differs from the one canonical
//! spelling in a case, a dot, a slash or an escape is not that name.

use std::{fmt, sync::Arc};

/// The longest DNS name, in bytes.
pub const MAX_DNS_NAME: usize = 253;
/// The longest label of a DNS name, in bytes.
pub const MAX_DNS_LABEL: usize = 63;

/// Why a text is not an identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// More than [`MAX_DNS_NAME`] bytes.
    #[error("is longer than 253 bytes")]
    TooLong,
    /// A label of more than [`MAX_DNS_LABEL`] bytes.
    #[error("has a label longer than 63 bytes")]
    LabelTooLong,
    /// Two dots side by side, or one at an end.
    #[error("has an empty label")]
    EmptyLabel,
    /// Anything but `a-z`, `0-9`, `-`, or a label that begins or ends with `-`.
    #[error("has a character that a name cannot have (lower case letters, digits, and '-' inside a label)")]
    BadCharacter,
    /// A namespace must be a single label.
    #[error("has a namespace that is not a single label")]
    BadNamespace,
    /// Another trust domain, or another identity namespace.
    #[error("is not in this trust domain")]
    OtherTrustDomain,
    /// Not of the form of a service account's identity.
    #[error("is not a service account's identity")]
    OtherForm,
}

/// Checks a DNS name: lower-case labels of letters, digits and inner dashes, divided by single dots.
pub fn check_dns_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_DNS_NAME {
        return Err(NameError::TooLong);
    }
    if sound_at_a_glance(name.as_bytes()) {
        return Ok(());
    }
    name.split('.').try_for_each(check_label)
}

/// Whether a name is certainly sound, told without a look at each label: names are checked for every connection.
fn sound_at_a_glance(name: &[u8]) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() | b.is_ascii_digit();
    let fits = name.iter().fold(true, |fits, b| fits & (letter(*b) | (*b == b'-') | (*b == b'.')));
    // Of two neighbors one is a letter, or both are dashes: no label is empty, begins or ends with a dash.
    let pairs = name.iter().zip(name.iter().skip(1));
    let apart =
        pairs.fold(true, |apart, (a, b)| apart & (letter(*a) | letter(*b) | ((*a == b'-') & (*b == b'-'))));
    let ends = [name.first(), name.last()].into_iter().all(|end| end.is_some_and(|b| letter(*b)));
    fits && apart && ends && (name.len() <= MAX_DNS_LABEL || longest_label(name) <= MAX_DNS_LABEL)
}

fn longest_label(name: &[u8]) -> usize {
    name.split(|b| *b == b'.').map(<[u8]>::len).max().unwrap_or(0)
}

fn check_label(label: &str) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::EmptyLabel);
    }
    if label.len() > MAX_DNS_LABEL {
        return Err(NameError::LabelTooLong);
    }
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !label.bytes().all(fits) || label.starts_with('-') || label.ends_with('-') {
        return Err(NameError::BadCharacter);
    }
    Ok(())
}

fn check_namespace(namespace: &str) -> Result<(), NameError> {
    match check_label(namespace) {
        Err(NameError::BadCharacter) if namespace.contains('.') => Err(NameError::BadNamespace),
        other => other,
    }
}

/// A service account's identity. Made and parsed by an [`IdentityNaming`]; cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityName(Arc<Forms>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Forms {
    namespace: String,
    service_account: String,
    dns: String,
    spiffe: String,
}

impl IdentityName {
    /// The service account's namespace.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }
    /// The service account's name.
    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }
    /// `<account>.<namespace>.serviceaccount.identity.<identity namespace>.<trust domain>`: also the SNI.
    pub fn dns(&self) -> &str {
        &self.0.dns
    }
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
    pub fn spiffe(&self) -> &str {
        &self.0.spiffe
    }
}

impl fmt::Display for IdentityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dns())
    }
}

impl fmt::Debug for IdentityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dns())
    }
}

/// The trust domain that a SPIFFE URI names; `None`: it names none.
pub fn trust_domain_of(spiffe: &str) -> Option<&str> {
    let (domain, _) = spiffe.strip_prefix("spiffe://")?.split_once('/')?;
    check_dns_name(domain).is_ok().then_some(domain)
}

/// How identities are spelled in this cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IdentityNaming {
    identity_namespace: String,
    trust_domain: String,
    dns_suffix: String,
    spiffe_prefix: String,
}

impl Default for IdentityNaming {
    /// `linkerd` and `cluster.local`, so that the rules of a Linkerd cluster keep their meaning.
    fn default() -> Self {
        Self::unchecked("linkerd", "cluster.local")
    }
}

impl IdentityNaming {
    /// Fails when the namespace is not a DNS label or the trust domain is not a DNS name.
    pub fn new(identity_namespace: &str, trust_domain: &str) -> Result<Self, NameError> {
        check_namespace(identity_namespace)?;
        check_dns_name(trust_domain)?;
        Ok(Self::unchecked(identity_namespace, trust_domain))
    }

    fn unchecked(identity_namespace: &str, trust_domain: &str) -> Self {
        Self {
            identity_namespace: identity_namespace.to_owned(),
            trust_domain: trust_domain.to_owned(),
            dns_suffix: format!(".serviceaccount.identity.{identity_namespace}.{trust_domain}"),
            spiffe_prefix: format!("spiffe://{trust_domain}/ns/"),
        }
    }

    /// The control plane's namespace, inside every DNS form.
    pub fn identity_namespace(&self) -> &str {
        &self.identity_namespace
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Whether no name can be read as an identity of both: their trust domains differ, and neither's DNS forms end as the
    /// other's do.
    pub fn is_apart_from(&self, other: &Self) -> bool {
        !self.dns_suffix.ends_with(&other.dns_suffix) && !other.dns_suffix.ends_with(&self.dns_suffix)
    }

    /// Whether an identity is of this trust domain, and not of another that is trusted.
    pub fn owns(&self, name: &IdentityName) -> bool {
        name.spiffe().starts_with(&*self.spiffe_prefix) && name.dns().ends_with(&*self.dns_suffix)
    }

    /// Whether names that are not a service account's of ours are certainly another trust domain's.
    pub(crate) fn is_foreign(&self, dns: &str, spiffe: &str) -> bool {
        let own = |uri: &str| trust_domain_of(uri) == Some(self.trust_domain.as_str());
        (!spiffe.is_empty() && !own(spiffe)) || dns.contains(".serviceaccount.identity.")
    }

    /// The identity of a service account. Fails when either name is not one that Kubernetes gives, or when the
    /// whole does not fit into a DNS name.
    pub fn name(&self, namespace: &str, service_account: &str) -> Result<IdentityName, NameError> {
        check_namespace(namespace)?;
        check_dns_name(service_account)?;
        let dns = format!("{service_account}.{namespace}{}", self.dns_suffix);
        check_dns_name(&dns)?;
        Ok(IdentityName(Arc::new(Forms {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            spiffe: format!("{}{namespace}/sa/{service_account}", self.spiffe_prefix),
            dns,
        })))
    }

    /// Parses either form.
    pub fn parse(&self, text: &str) -> Result<IdentityName, NameError> {
        if text.starts_with("spiffe://") { self.parse_spiffe(text) } else { self.parse_dns(text) }
    }

    /// Parses the DNS form.
    pub fn parse_dns(&self, text: &str) -> Result<IdentityName, NameError> {
        check_dns_name(text)?;
        let account = text.strip_suffix(&self.dns_suffix).ok_or_else(|| {
            if text.contains(".serviceaccount.identity.") {
                NameError::OtherTrustDomain
            } else {
                NameError::OtherForm
            }
        })?;
        // A service account's name may hold dots; a namespace cannot: the last label is the namespace.
        let (service_account, namespace) = account.rsplit_once('.').ok_or(NameError::OtherForm)?;
        self.name(namespace, service_account)
    }

    /// Namespace and service account of a DNS form that is one of ours, of a text that [`check_dns_name`] found sound:
    /// its labels are sound then. Takes no memory.
    pub(crate) fn split_dns<'a>(&self, text: &'a str) -> Option<(&'a str, &'a str)> {
        let (account, namespace) = text.strip_suffix(&*self.dns_suffix)?.rsplit_once('.')?;
        Some((namespace, account))
    }

    /// The same of a SPIFFE form.
    pub(crate) fn split_spiffe<'a>(&self, text: &'a str) -> Option<(&'a str, &'a str)> {
        let (namespace, account) = text.strip_prefix(&*self.spiffe_prefix)?.split_once("/sa/")?;
        let fits = check_namespace(namespace).is_ok()
            && check_dns_name(account).is_ok()
            && account.len() + 1 + namespace.len() + self.dns_suffix.len() <= MAX_DNS_NAME;
        fits.then_some((namespace, account))
    }

    /// Whether a text is the SPIFFE form of a service account. Takes no memory.
    pub(crate) fn is_spiffe_of(&self, text: &str, namespace: &str, account: &str) -> bool {
        let rest = text.strip_prefix(&*self.spiffe_prefix).and_then(|rest| rest.strip_prefix(namespace));
        rest.and_then(|rest| rest.strip_prefix("/sa/")) == Some(account)
    }

    /// Writes the DNS form into `buffer`.
    pub(crate) fn write_dns(&self, namespace: &str, account: &str, buffer: &mut String) {
        buffer.clear();
        for part in [account, ".", namespace, &self.dns_suffix] {
            buffer.push_str(part);
        }
    }

    /// Parses the SPIFFE form.
    pub fn parse_spiffe(&self, text: &str) -> Result<IdentityName, NameError> {
        let Some(path) = text.strip_prefix(&self.spiffe_prefix) else {
            return Err(if text.starts_with("spiffe://") && text.contains("/ns/") {
                NameError::OtherTrustDomain
            } else {
                NameError::OtherForm
            });
        };
        let mut segments = path.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some(namespace), Some("sa"), Some(service_account), None) => {
                self.name(namespace, service_account)
            }
            _ => Err(NameError::OtherForm),
        }
    }
}

#[cfg(test)]
mod tests;
