//! A request as it came, and why one is not judged.

use super::host::BadHost;
use crate::path::BadPath;

/// A request. Everything is as it came; nothing needs to be normalized before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// The target: the path, perhaps with a query.
    pub target: &'a str,
    /// `:authority` or `Host`; empty: none.
    pub host: &'a str,
    /// The headers, each as often as it came, in any case.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// Why a request is not judged, but refused as one that can mean two things.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRequest {
    /// Its path.
    #[error("the path {0}")]
    Path(#[from] BadPath),
    /// Its host.
    #[error("the host {0}")]
    Host(#[from] BadHost),
    /// A header that came several times, with values of which some are what a route asks for.
    #[error("a header that a route looks at has several values, and not all of them are what it asks for")]
    Header,
    /// The same of a query parameter.
    #[error("a query parameter that a route looks at is there several times, and differs")]
    Query,
}

impl<'a> Request<'a> {
    /// Path and query of the target.
    pub fn split(&self) -> (&'a str, Option<&'a str>) {
        match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.target, None),
        }
    }
}
