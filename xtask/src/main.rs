//! Every developer's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = xtask::lab::apps::entry() {
        return code;
    }
    ExitCode::FAILURE
}
