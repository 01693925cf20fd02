#![forbid(unsafe_code)]
//! Who a workload is.
