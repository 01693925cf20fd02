//! `cargo xtask node`: two machines that a link joins, as `test-vms/Vagrantfile` makes them; here a network namespace each.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

const INTERFACE: &str = "heddle-link";

/// Two machines with nothing but a link; removed when dropped, and what runs on them, too.
struct Machines(String);

impl Machines {
    fn new() -> Result<Self> {
        let machines = Self(format!("heddle-machine-{}", std::process::id()));
        for number in [1, 2] {
            ip(&["netns", "add", &machines.name(number)])?;
        }
        let [first, second] = [machines.name(1), machines.name(2)];
        let link = ["link", "add", INTERFACE, "netns", &first, "type", "veth", "peer", "name", INTERFACE];
        ip(&[&link[..], &["netns", &second]].concat())?;
        Ok(machines)
    }

    fn name(&self, number: u8) -> String {
        format!("{}-{number}", self.0)
    }

    fn node(&self, number: u8, authority: &Path, more: &[&str]) -> Result<(bool, String)> {
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name(number)))
            .arg(std::env::var_os("HEDDLE_XTASK").unwrap_or_else(|| env!("CARGO_BIN_EXE_xtask").into()))
            .args(["node", &number.to_string(), INTERFACE, "--inner", "--authority"])
            .arg(authority)
            .args(more)
            .output()?;
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), text))
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for number in [1, 2] {
            let _ = self.node(number, Path::new("/nowhere"), &["--remove"]);
            let _ = ip(&["netns", "del", &self.name(number)]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs a command that was told as one to try.
fn tried(told: &str, place: &str) -> Result<String> {
    let line = told.lines().find(|line| line.contains(&format!("/in {place} curl")));
    let line = line.with_context(|| format!("nothing to try in {place}: {told}"))?;
    // No answer at all is one of the answers: the output says which.
    let output = Command::new("sh").args(["-c", &format!("timeout 60 {line}")]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_it_says_to_try_is_what_comes() -> Result<()> {
    let machines = Machines::new()?;
    let folder = tempfile::tempdir()?;
    let authority = folder.path().join("authority.pem");

    let (made, told) = machines.node(2, &authority, &[])?;
    assert!(!made && told.contains("machine 1 writes that file"), "{told}");
    let (made, first) = machines.node(1, &authority, &[])?;
    assert!(made, "{first}");
    assert!(tried(&first, "client")?.is_empty(), "nobody is there yet");
    let (made, second) = machines.node(2, &authority, &[])?;
    assert!(made, "{second}");

    assert!(tried(&first, "client")?.contains("THE-LOOM-IS-OPEN"));
    assert!(tried(&second, "web")?.contains("THE-LOOM-IS-OPEN"));
    assert_eq!(tried(&first, "plain")?, "", "in no mesh");
    for number in [1, 2] {
        let (made, told) = machines.node(number, &authority, &["--remove"])?;
        assert!(made && told.contains("1 node(s) removed"), "{told}");
    }
    Ok(())
}
