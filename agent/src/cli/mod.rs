//! The commands of `heddle`.

pub mod config;
pub mod door;

/// Main.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
