//! The test binaries, as cargo builds and names them.

use crate::command;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A binary made of tests.
pub struct TestBinary {
    /// Package and target, as in `heddle-door`.
    pub name: String,
    /// The program.
    pub executable: PathBuf,
    /// Where cargo would start it.
    package: PathBuf,
}

/// Builds every test of the workspace.
pub fn build(workspace: &Workspace) -> Result<Vec<TestBinary>> {
    built(workspace, &["--workspace"])
}

/// Builds the tests of the agent that are in these files, as in `spoofing`; without a file, or where one is not there,
/// every test. With one of cargo's profiles.
pub fn build_files(workspace: &Workspace, profile: &str, files: &[String]) -> Result<Vec<TestBinary>> {
    let there = |file: &String| workspace.root.join("agent/tests").join(file).with_extension("rs").is_file();
    if files.is_empty() || !files.iter().all(there) {
        return built(workspace, &["--workspace", "--profile", profile]);
    }
    let named = files.iter().flat_map(|file| ["--test", file.as_str()]);
    built(
        workspace,
        &["--package", "heddle", "--profile", profile].into_iter().chain(named).collect::<Vec<_>>(),
    )
}

fn built(workspace: &Workspace, which: &[&str]) -> Result<Vec<TestBinary>> {
    let mut command = workspace.cargo();
    command.arg("test").args(which).args(["--no-run", "--message-format=json-render-diagnostics"]);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{}`", command::shown(&command)))?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(TestBinary::from_message).collect())
}

impl TestBinary {
    /// From a line of cargo's JSON, where it tells of a test binary.
    fn from_message(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        let package = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_owned();
        let folder = package.file_name()?.to_str()?;
        let (target, kind) = (message["target"]["name"].as_str()?, message["target"]["kind"][0].as_str()?);
        let name = match kind {
            "test" => format!("{folder}-{target}"),
            _ => format!("{folder}-{kind}"),
        };
        Some(Self { name, executable: PathBuf::from(message["executable"].as_str()?), package })
    }

    /// The binary under `timeout` (coreutils'), from the folder that cargo would start it in.
    pub fn command(&self, mut timeout: Command, seconds: u32) -> Command {
        timeout
            .args(["--kill-after=10", &seconds.to_string()])
            .arg(&self.executable)
            .current_dir(&self.package);
        timeout.env("CARGO_MANIFEST_DIR", &self.package);
        timeout
    }

    /// The names of the tests that are ignored: those that need root.
    pub fn ignored(&self, filter: Option<&str>) -> Result<Vec<String>> {
        let mut list = Command::new(&self.executable);
        list.args(["--list", "--ignored", "--format=terse"]).args(filter).current_dir(&self.package);
        let listed = command::output(&mut list)?;
        Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::TestBinary;

    #[test]
    fn test_binaries_are_told_from_libraries() {
        let artifact = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/x/agent/Cargo.toml","target":{{"name":"door","kind":["test"]}},
                "profile":{{"test":{test}}},"executable":"/t/door-1"}}"#
            )
            .replace('\n', "")
        };
        assert_eq!(TestBinary::from_message(&artifact(true)).unwrap().name, "agent-door");
        assert!(TestBinary::from_message(&artifact(false)).is_none());
        assert!(TestBinary::from_message(r#"{"reason":"build-finished","success":true}"#).is_none());
        assert!(TestBinary::from_message("not JSON").is_none());
    }
}
