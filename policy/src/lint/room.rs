//! Rules that take so much of a node's tables that their own namespace may be closed for it.

use crate::{Capacity, Compiled, Problem, Severity, room::about};

/// Beyond one of so many shares of a table a namespace is named.
const SHARES: u32 = 4;

pub(super) fn look(compiled: &Compiled, problems: &mut Vec<Problem>) {
    for (namespace, crowding) in compiled.crowding(&Capacity::default(), SHARES) {
        let (table, rows, places) = (crowding.table, crowding.needed, crowding.capacity);
        let fits = u32::try_from(rows).is_ok_and(|rows| rows <= places);
        let (severity, follows) = if fits {
            (Severity::Warning, "where a node has not room for all, those that take most are closed")
        } else {
            (Severity::Error, "a node that runs them closes all of its pods, both ways")
        };
        let reason = format!(
            "its rules and pods take {rows} of the {places} places that table {table} has on a node: {follows}"
        );
        let remedy = format!(
            "let its rules name fewer ports and networks, or raise capacity.{table} in the agents' configuration"
        );
        problems.push(about(&compiled.base, namespace, severity, reason).remedy(remedy));
    }
}
