//! The kernel's tables hold what the snapshots say.

use std::sync::Arc;

use heddle_policy::Compiled;
use miette::miette;

use super::super::{Failure, Fence};
use crate::{
    capture::Capture,
    cluster::snapshot::{Enforcer, PublishError, Snapshot},
};

pub(super) struct KernelTables(pub Arc<Capture>);

impl Enforcer<Compiled> for KernelTables {
    fn publish(&self, snapshot: &Snapshot<Compiled>) -> Result<(), PublishError> {
        let tables = &snapshot.compiled.tables;
        match self.0.publish(tables, snapshot.generation) {
            Ok(rows) => match rows.full {
                None => Ok(()),
                // The generation is in force and closed: whatever was forgotten would have been refused or let out.
                Some(table) => Err(PublishError::Full {
                    capacity: self.0.kernel().places(&table),
                    needed: tables.rows(&table),
                    table,
                }),
            },
            Err(error) => Err(PublishError::Kernel { table: "tables".into(), message: error.to_string() }),
        }
    }
}

impl Fence for KernelTables {
    fn lift(&self) -> Result<u64, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            miette!(
                help = "`heddle check` says what this host lacks",
                "the kernel side cannot be put in force: {error}"
            )
        };
        self.0.unfence().map_err(|error| failed(&error))?;
        self.0.generation().map_err(|error| failed(&error))
    }
}
