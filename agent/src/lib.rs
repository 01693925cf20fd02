//! Heddle: a service mesh of one agent per node.

pub mod proxy;
