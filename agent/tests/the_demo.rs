//! The demo shows every promise, writes down what it observed, and can be asked for a part.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::missing_tools;

/// Runs the demo's inner part, as `cargo xtask demo` does once everything is built.
fn demo(arguments: &[&str]) -> Result<Output> {
    let missing = missing_tools(&["nginx", "curl", "socat", "ncat", "openssl", "bpftool"]);
    ensure!(missing.is_empty(), "the demo needs {missing:?}");
    let heddle = std::path::Path::new(env!("CARGO_BIN_EXE_heddle"));
    let xtask = std::env::var_os("HEDDLE_XTASK").map_or_else(|| heddle.with_file_name("xtask"), Into::into);
    Command::new(&xtask)
        .args(["demo", "--inner", "--heddle"])
        .arg(heddle)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {}", xtask.display()))
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn every_step_is_seen_and_written_down() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("seen.json");
    let output = demo(&["--json", &file.display().to_string()])?;
    ensure!(output.status.success(), "{}", printed(&output));
    let told: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    assert_eq!((&told["seen"], &told["error"]), (&Value::Bool(true), &Value::Null));
    let steps = told["steps"].as_array().context("no steps")?;
    let letters: Vec<&str> = steps.iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(letters, ["a", "b", "c", "d", "e", "f", "g"]);
    let observed = |step: usize, path: &str| {
        let found = steps[step]["observed"].pointer(path).cloned();
        found.with_context(|| format!("step {step} tells nothing of {path}: {}", steps[step]["observed"]))
    };
    let number =
        |step, path: &str| observed(step, path)?.as_f64().with_context(|| format!("{path} is no number"));
    assert!(number(0, "/without_mesh/marker_hits")? > 0.0, "the control of the whole");
    for family in ["ipv4", "ipv6"] {
        assert_eq!(number(0, &format!("/{family}/marker_hits"))?, 0.0);
        assert!(number(0, &format!("/{family}/milliseconds"))? > 0.0);
    }
    for who in ["other_identity", "unmeshed"] {
        let told = observed(1, &format!("/{who}"))?;
        assert!(told["errno"].is_string() || told["closed"] == true, "{who}: {told}");
        assert_eq!(told["bytes"], 0, "{who}: {told}");
    }
    for what in ["pod", "service", "service_ipv6"] {
        assert!(number(2, &format!("/{what}/bytes"))? > 50_000.0);
        assert_eq!(number(2, &format!("/{what}/through_agent"))?, 0.0);
        assert_eq!(observed(2, &format!("/refused_{what}/errno"))?, "ECONNREFUSED");
    }
    assert!(number(3, "/across_ended_milliseconds")? > 0.0);
    assert_eq!(number(4, "/dead/marker_hits")?, 0.0);
    assert!(!observed(6, "/refused_under_cluster")?.as_array().context("no list")?.is_empty());
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_part_is_shown_and_what_is_no_step_is_an_error() -> Result<()> {
    let output = demo(&["--steps", "f"])?;
    let said = printed(&output);
    ensure!(output.status.success(), "{said}");
    assert!(said.contains("\n1 steps in"), "{said}");
    let output = demo(&["--steps", "z"])?;
    ensure!(!output.status.success() && printed(&output).contains("no step 'z'"), "{}", printed(&output));
    // What does not hold is told by the exit code: without its agent no step is seen.
    let output = demo(&["--steps", "c", "--heddle", "/bin/false"])?;
    ensure!(!output.status.success(), "{}", printed(&output));
    Ok(())
}
