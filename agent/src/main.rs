//! `heddle`: the agent of a node and the commands that speak with it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    heddle::cli::main()
}
