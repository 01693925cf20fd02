//! cli
/// Main.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
