//! Requests, as far as policy looks at them, and the routes that divide them.

mod host;
mod message;
mod table;
mod values;

pub(crate) use self::{
    host::host_matches,
    table::{RouteEntry, RouteTable, Routed},
};
pub use self::{
    host::{BadHost, Host},
    message::{BadRequest, Request},
};
pub use crate::path::{BadPath, check_path};

#[cfg(test)]
mod tests;
