//! A request, as a person writes it.

use super::Failure;
use heddle_policy::Request;
use miette::miette;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What is asked of a port that speaks HTTP or gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// The same as flags.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct AskedFlags {
    /// The request's method [default: GET, where anything of a request is given]
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Its path, perhaps with a query; of gRPC: /package.Service/Method
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Its host (`Host`, `:authority`)
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// One of its headers; repeat for several
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
}

impl AskedFlags {
    /// The request; `None`: none is given.
    pub fn asked(&self) -> Result<Option<Asked>, Failure> {
        let mut headers = BTreeMap::new();
        for header in &self.header {
            let (name, value) = header
                .split_once(':')
                .ok_or_else(|| miette!(help = "write NAME: VALUE", "--header {header}: has no value"))?;
            headers.insert(name.trim().to_owned(), value.trim().to_owned());
        }
        let asked =
            Asked { method: self.method.clone(), path: self.path.clone(), host: self.host.clone(), headers };
        Ok((asked != Asked::default()).then_some(asked))
    }
}

impl Asked {
    /// Asks something with it.
    pub fn with<T>(&self, ask: impl FnOnce(&Request<'_>) -> T) -> T {
        let headers: Vec<(&str, &[u8])> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        ask(&Request {
            method: self.method.as_deref().unwrap_or("GET"),
            target: self.path.as_deref().unwrap_or("/"),
            host: self.host.as_deref().unwrap_or_default(),
            headers: &headers,
        })
    }

    /// As people read it.
    pub fn describe(&self) -> String {
        self.with(|request| format!("{} {}{}", request.method, request.host, request.target))
    }
}
