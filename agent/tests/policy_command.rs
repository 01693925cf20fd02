//! `heddle policy` as a person or a pipeline runs it: what it prints where, and how it ends.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

const SHOP: &str = include_str!("../src/cli/policy/testing/shop.yaml");
const FLOW: &str = r#"{"version":1,"node":"a","first":"2026-11-22T05:00:00Z","last":"2026-11-22T05:00:00Z","count":3,"protocol":"tcp","source":{"address":"10.1.0.1","pod":"shop/web-7d9f-x2x4z","workload":"shop/web","identity":"web.shop.serviceaccount.identity.linkerd.cluster.local"},"destination":{"address":"10.1.0.2","port":6379,"pod":"shop/redis-0","workload":"shop/redis"},"outcome":"allowed","reason":"authorized","rule":"AuthorizationPolicy shop/allow-web"}"#;

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = folder.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn heddle(&self, arguments: &[&str]) -> Output {
        command(self.0.path(), arguments).output().unwrap()
    }
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heddle"));
    command.current_dir(folder).arg("policy").args(arguments);
    command.env_remove("HEDDLE_CONFIG").env_remove("HEDDLE_SOCKET").env_remove("COLUMNS");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn ends(output: &Output, code: i32, told: &str) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    assert!(out.contains(told) || err.contains(told), "{told:?} is in neither\n{out}\n{err}");
    assert!(!out.contains('\u{1b}'), "no color where nobody looks: {out}");
}

#[test]
fn check_ends_with_0_1_and_2() {
    let folder = Folder::with(&[
        ("good/shop.yaml", SHOP),
        ("warned/shop.yaml", &SHOP.replace("app: redis}}\n  port", "app: rediss}}\n  port")),
        ("wrong/shop.yaml", &SHOP.replace("port: redis", "port: 70000")),
    ]);
    fs::create_dir(folder.0.path().join("binary")).unwrap();
    fs::write(folder.0.path().join("binary/a.yaml"), b"\xff\xfe").unwrap();
    ends(&folder.heddle(&["check", "good"]), 0, "0 errors, 0 warnings");
    ends(&folder.heddle(&["check", "warned"]), 0, "selects none of the 4 known pods");
    ends(&folder.heddle(&["check", "warned", "--deny-warnings"]), 1, "selects none");
    ends(&folder.heddle(&["check", "wrong"]), 1, "wrong/shop.yaml");
    ends(&folder.heddle(&["check", "binary"]), 2, "binary/a.yaml");
    ends(&folder.heddle(&["check", "nowhere"]), 2, "nowhere");
    ends(&folder.heddle(&["check"]), 2, "DIR");
    let sarif = folder.heddle(&["check", "wrong", "--output", "sarif"]);
    ends(&sarif, 1, "\"uri\": \"wrong/shop.yaml\"");
    let json = folder.heddle(&["check", "wrong", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["problems"][0]["file"], "wrong/shop.yaml", "{json}");
}

#[test]
fn rules_may_come_from_a_file_or_from_standard_input() {
    let folder = Folder::with(&[("shop.yaml", SHOP)]);
    ends(&folder.heddle(&["check", "shop.yaml"]), 0, "in 1 files");
    let mut child =
        command(folder.0.path(), &["explain", "--from", "shop/web", "--to", "svc/shop/redis:6379", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), SHOP.as_bytes()).unwrap();
    ends(&child.wait_with_output().unwrap(), 0, "ALLOWED");
}

#[test]
fn what_a_change_would_break_is_an_exit_code() {
    let folder = Folder::with(&[
        ("old/shop.yaml", SHOP),
        ("new/shop.yaml", &SHOP.replace("name: web}]", "name: stranger}]")),
        ("flows.jsonl", &format!("{FLOW}\n")),
        ("broken.jsonl", "{}\n"),
    ]);
    ends(&folder.heddle(&["diff", "old", "new"]), 0, "newly refused: 1 flow in 1 group");
    ends(
        &folder.heddle(&["diff", "old", "new", "--observed", "flows.jsonl"]),
        1,
        "HAPPENED AND WOULD BE REFUSED",
    );
    ends(&folder.heddle(&["diff", "old", "old", "--observed", "flows.jsonl"]), 0, "0 would be refused");
    ends(&folder.heddle(&["diff", "old", "new", "--observed", "broken.jsonl"]), 2, "broken.jsonl:1");
    let suggested = folder.heddle(&["suggest", "--observed", "flows.jsonl", "new"]);
    ends(&suggested, 0, "redis-observed");
    fs::write(folder.0.path().join("new/observed.yaml"), &suggested.stdout).unwrap();
    ends(&folder.heddle(&["check", "new", "--deny-warnings"]), 0, "0 errors");
    ends(&folder.heddle(&["diff", "old", "new", "--observed", "flows.jsonl"]), 0, "0 would be refused");
}

#[test]
fn assertions_and_the_matrix_end_as_they_should() {
    let good = "tests:\n- {from: shop/web, to: 'shop/redis:6379', expect: allowed}\n";
    let folder = Folder::with(&[
        ("m/shop.yaml", SHOP),
        ("good.yaml", good),
        ("bad.yaml", &good.replace("expect: allowed", "expect: refused")),
        ("nobody.yaml", &good.replace("shop/web", "shop/nobody")),
    ]);
    ends(&folder.heddle(&["test", "good.yaml", "m"]), 0, "1 hold, 0 do not");
    ends(&folder.heddle(&["test", "bad.yaml", "m"]), 1, "FAILED bad.yaml:2");
    ends(&folder.heddle(&["test", "nobody.yaml", "m"]), 2, "cannot be run");
    ends(&folder.heddle(&["matrix", "m"]), 0, "AuthorizationPolicy shop/allow-web");
    ends(&folder.heddle(&["matrix", "m", "--output", "csv"]), 0, "from,to,port,verdict,reason,rule");
    ends(&folder.heddle(&["matrix", "m", "--output", "html"]), 0, "<!doctype html>");
}

#[test]
fn the_help_of_each_command_teaches_by_example() {
    let folder = Folder::with(&[]);
    for command in ["check", "explain", "matrix", "diff", "suggest", "test"] {
        let example = format!("  heddle policy {command} ");
        ends(&folder.heddle(&[command, "--help"]), 0, &example);
    }
}
