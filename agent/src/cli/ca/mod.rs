//! `heddle ca`: the certificate authority, and the making of its keys.
//!
//! [`serve`] runs a replica: [`listener`] takes connections, [`service`] answers them. Who asks is for [`attest`] to say,
//! what runs where for [`scheduled`], and every answer is a record of [`audit`]. [`ceremony`] makes keys by hand.

pub mod rpc;

mod attest;
mod audit;
mod ceremony;
mod counts;
mod flags;
mod issuing;
mod limits;
mod listener;
mod repeated;
mod scheduled;
mod serve;
mod service;

pub use flags::CaCommand;

use super::Failure;
use std::process::ExitCode;

/// The audience of the tokens by which agents prove themselves.
pub(crate) const AUDIENCE: &str = "ca.heddle.io";

/// The key that signs agents' tokens has some 250 bytes in PEM.
const AGENTS_KEY_BYTES: usize = 16 * 1024;

/// Runs what the arguments name.
pub(super) fn run(command: CaCommand) -> Result<ExitCode, Failure> {
    match command {
        CaCommand::Init(flags) => ceremony::init(&flags),
        CaCommand::Issuer(flags) => ceremony::issuer(&flags),
        CaCommand::AgentsKey(flags) => ceremony::agents_key(&flags),
        CaCommand::Token(flags) => ceremony::token(&flags),
        CaCommand::Revoke(flags) => ceremony::revoke(&flags),
        CaCommand::Serve(flags) => serve::run(&flags),
    }
}
