//! An identity's two spellings: the DNS form and the SPIFFE form.
//!
//! Parsing is strict and never normalizes: another case, an empty label, `%2e`, `..` or a character outside the
//! alphabet is an error, not another spelling of the same identity.

/// Why a name is not an identity's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A part breaks the alphabet or the length of Kubernetes' names.
    #[error("{part} {value:?} is not valid: {reason}")]
    Part {
        /// Which part: `namespace`, `service account`, ….
        part: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The whole does not have the form of an identity of this trust domain.
    #[error("{value:?} is not an identity in {form}")]
    Form {
        /// What was given.
        value: String,
        /// The form that was expected.
        form: String,
    },
    /// The DNS form would be longer than a DNS name may be.
    #[error(
        "the DNS form {value:?} is longer than 253 bytes: use a shorter service account, namespace or trust domain"
    )]
    TooLong {
        /// The name.
        value: String,
    },
}

/// A workload's identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityName {
    dns: String,
    spiffe: String,
}

impl IdentityName {
    /// `<sa>.<ns>.serviceaccount.identity.<identityNamespace>.<trustDomain>`.
    pub fn dns(&self) -> &str {
        &self.dns
    }

    /// `spiffe://<trustDomain>/ns/<ns>/sa/<sa>`.
    pub fn spiffe(&self) -> &str {
        &self.spiffe
    }
}

impl std::fmt::Display for IdentityName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.dns)
    }
}

/// How the identities of one trust domain are spelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityNaming {
    trust_domain: String,
    /// `.serviceaccount.identity.<identityNamespace>.<trustDomain>`
    dns_suffix: String,
    /// `spiffe://<trustDomain>/ns/`
    spiffe_prefix: String,
}

impl IdentityNaming {
    /// # Errors
    /// A trust domain that is no DNS name in lower case, or an identity namespace that is no DNS label.
    pub fn new(identity_namespace: &str, trust_domain: &str) -> Result<Self, NameError> {
        subdomain("trust domain", trust_domain)?;
        label("identity namespace", identity_namespace)?;
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            dns_suffix: format!(".serviceaccount.identity.{identity_namespace}.{trust_domain}"),
            spiffe_prefix: format!("spiffe://{trust_domain}/ns/"),
        })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The identity of a service account.
    ///
    /// # Errors
    /// Parts that Kubernetes would not accept, or a DNS form that is too long.
    pub fn name(&self, namespace: &str, service_account: &str) -> Result<IdentityName, NameError> {
        label("namespace", namespace)?;
        subdomain("service account", service_account)?;
        let dns = format!("{service_account}.{namespace}{}", self.dns_suffix);
        if dns.len() > 253 {
            return Err(NameError::TooLong { value: dns });
        }
        Ok(IdentityName { dns, spiffe: format!("{}{namespace}/sa/{service_account}", self.spiffe_prefix) })
    }

    /// The identity whose DNS form is `dns`.
    ///
    /// # Errors
    /// Anything that is not exactly the DNS form of an identity of this trust domain.
    pub fn parse_dns(&self, dns: &str) -> Result<IdentityName, NameError> {
        let parts = dns.strip_suffix(&self.dns_suffix).and_then(|rest| rest.rsplit_once('.'));
        let Some((service_account, namespace)) = parts else {
            let form = format!("the form <service account>.<namespace>{}", self.dns_suffix);
            return Err(NameError::Form { value: dns.to_owned(), form });
        };
        self.name(namespace, service_account)
    }

    /// The identity whose SPIFFE form is `uri`.
    ///
    /// # Errors
    /// Anything that is not exactly the SPIFFE form of an identity of this trust domain.
    pub fn parse_spiffe(&self, uri: &str) -> Result<IdentityName, NameError> {
        let parts = uri.strip_prefix(&self.spiffe_prefix).and_then(|rest| rest.split_once("/sa/"));
        let Some((namespace, service_account)) = parts else {
            let form = format!("the form {}<namespace>/sa/<service account>", self.spiffe_prefix);
            return Err(NameError::Form { value: uri.to_owned(), form });
        };
        self.name(namespace, service_account)
    }
}

fn label(part: &'static str, value: &str) -> Result<(), NameError> {
    let wrong = |reason| Err(NameError::Part { part, value: value.to_owned(), reason });
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match value.as_bytes() {
        [] => wrong("it is empty"),
        bytes if bytes.len() > 63 => wrong("it has more than 63 bytes"),
        bytes if !bytes.iter().all(|b| inner(b) || *b == b'-') => {
            wrong("only a-z, 0-9 and - may stand in it, and no dot")
        }
        [first, ..] if !inner(first) => wrong("it must start with a letter or a digit"),
        [.., last] if !inner(last) => wrong("it must end with a letter or a digit"),
        _ => Ok(()),
    }
}

fn subdomain(part: &'static str, value: &str) -> Result<(), NameError> {
    if value.len() > 253 {
        return Err(NameError::Part { part, value: value.to_owned(), reason: "it has more than 253 bytes" });
    }
    value.split('.').try_for_each(|one| label(part, one))
}

#[cfg(test)]
mod tests;
