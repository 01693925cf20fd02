//! The commands of `heddle`.

pub mod config;

/// Main.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
