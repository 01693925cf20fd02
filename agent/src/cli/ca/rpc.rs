//! The authority's protocol, as `proto/ca.proto` has it.
#![allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]

tonic::include_proto!("heddle.ca.v1");
