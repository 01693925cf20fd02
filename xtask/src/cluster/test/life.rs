//! f: a pod comes, goes and comes again.

use super::scene::{NODE_A, Scene};
use anyhow::Result;
use std::time::Duration;
use xtask::demo::report::Step;
use xtask::lab::eventually;

const JOINS: usize = 5;
const JOINED: &str = r#"apiVersion: v1
kind: Namespace
metadata: {name: plain, annotations: {heddle.io/mesh: MESH}}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: plain}
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 1
  containers: [{name: shell, image: "heddle.local/apps:1"}]
"#;
const JOB: &str = r#"apiVersion: batch/v1
kind: Job
metadata: {name: order, namespace: shop}
spec:
  backoffLimit: 0
  template:
    spec:
      nodeName: node-a
      serviceAccountName: client
      restartPolicy: Never
      initContainers:
        - {name: before, image: "heddle.local/apps:1", command: [curl, -sSf, --retry, "20", --retry-delay, "1", --retry-all-errors, "http://WEB:8080/before"]}
      containers:
        - {name: order, image: "heddle.local/apps:1", command: [curl, -sSf, --retry, "5", --retry-delay, "1", --retry-all-errors, "http://WEB:8080/order"]}
"#;

/// A namespace joins, and the pod that comes right after: both are watched apart.
fn joins(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does(format!("{JOINS} times: namespace plain joins the mesh and a pod is made in it at once"));
    let mut captured = 0;
    for number in 0..JOINS {
        let name = format!("joined-{number}");
        let pod = JOINED.replace("NAME", &name);
        scene.apply("joined.yaml", &pod.replace("MESH", "enabled"))?;
        eventually("the pod to run", Duration::from_secs(60), || {
            Ok(scene.kubectl(&["get", "pod", "-n", "plain", &name, "-o", "jsonpath={.status.phase}"])?.trim()
                == "Running")
        })?;
        captured += usize::from(scene.captured(NODE_A)?.contains_key(&format!("plain/{name}")));
        scene.kubectl(&["delete", "pod", "-n", "plain", &name, "--timeout=25s"])?;
        scene.kubectl(&["annotate", "namespace", "plain", "heddle.io/mesh-"])?;
    }
    step.check("every such pod is captured", captured == JOINS, format!("{captured} of {JOINS}"));
    Ok(())
}

/// f. Jobs finish, and what is deleted is let go.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    joins(scene, step)?;
    let web = scene.address("shop", "web")?.to_string();
    step.does("a Job whose init container and container each ask shop/web");
    scene.apply("job.yaml", &JOB.replace("WEB", &web))?;
    let done = || scene.kubectl(&["get", "job", "-n", "shop", "order", "-o", "jsonpath={.status.succeeded}"]);
    let finished = eventually("the Job to finish", Duration::from_secs(60), || Ok(done()?.trim() == "1"));
    step.check("the Job finishes", finished.is_ok(), format!("succeeded: {}", done()?.trim()));
    step.does("kubectl delete pod shop/client, and the same pod applied again");
    let before = scene.captured(NODE_A)?;
    scene.kubectl(&["delete", "pod", "-n", "shop", "client", "--timeout=25s"])?;
    let gone = eventually("its capture to end", Duration::from_secs(20), || {
        Ok(!scene.captured(NODE_A)?.contains_key("shop/client"))
    });
    step.check(
        "what is deleted is let go",
        gone.is_ok() && before.contains_key("shop/client"),
        format!("{} pods captured before", before.len()),
    );
    scene.apply("shop.yaml", super::scene::SHOP)?;
    eventually("shop/client to be ready", Duration::from_secs(60), || {
        Ok(scene.kubectl(&["get", "pod", "-n", "shop", "client", "-o", "jsonpath={.status.phase}"])?.trim()
            == "Running")
    })?;
    let mut last = String::new();
    let answered = eventually("shop/client to be answered", Duration::from_secs(20), || {
        let output = scene.curl("shop", "client", &format!("http://{web}:8080/again"))?;
        last = output.last_line().to_owned();
        Ok(output.succeeded())
    });
    step.check("the new one is captured and answered", answered.is_ok(), last);
    Ok(())
}
