//! Heddle: a service mesh of one agent per node.

fn main() {}
