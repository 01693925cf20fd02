//! What the resources mean, sentence by sentence, and the defects that others had.
#![allow(clippy::unwrap_used)]

mod access_rules;
mod bad_input;
mod captured;
mod datagrams;
mod defects;
mod documented;
mod golden;
mod inbound;
mod manifests;
mod passages;
mod routes;
mod world;
