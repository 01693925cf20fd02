//! The audit log: every refusal as a structured record of `tracing`, under a target of its own.

use super::record::EventRecord;

/// The target to select in a filter: `heddle::audit=info`.
pub const TARGET: &str = "heddle::audit";

/// Logs `record` if it tells of a refusal.
pub fn refusal(record: &EventRecord) {
    if !record.is_refusal() {
        return;
    }
    tracing::info!(
        target: TARGET,
        node = &*record.node,
        pod = record.pod.as_deref(),
        hook = record.hook,
        outcome = record.outcome,
        reason = record.reason,
        rule = record.rule.as_deref(),
        generation = record.generation,
        source = %record.source.address,
        source_port = record.source.port,
        source_workload = record.source.workload.as_deref(),
        source_identity = record.source.identity.as_deref(),
        destination = %record.destination.address,
        destination_port = record.destination.port,
        destination_workload = record.destination.workload.as_deref(),
        destination_identity = record.destination.identity.as_deref(),
        protocol = &*record.protocol,
        command = record.command.as_deref(),
        pid = record.pid,
        "{}",
        record.sentence
    );
}
