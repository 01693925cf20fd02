//! i: Services lead where their EndpointSlices say.

use super::scene::Scene;
use anyhow::Result;
use std::collections::BTreeSet;
use std::time::Duration;
use xtask::demo::report::Step;
use xtask::lab::{Output, eventually};

const SERVICES: &str = include_str!("services.yaml");
/// As a pod speaks to the API server.
const ASK: &str = "T=/var/run/secrets/kubernetes.io/serviceaccount; exec curl -sS --max-time 5 --cacert $T/ca.crt \
    -H \"Authorization: Bearer $(cat $T/token)\" --resolve kubernetes.default:443:$0 https://kubernetes.default/version";

fn address(scene: &Scene, namespace: &str, service: &str) -> Result<String> {
    let words = ["get", "service", "-n", namespace, service, "-o", "jsonpath={.spec.clusterIP}"];
    Ok(scene.kubectl(&words)?.trim().to_owned())
}

fn asks_api(scene: &Scene) -> Result<Output> {
    let api = address(scene, "default", "kubernetes")?;
    let words = ["exec", "-n", "shop", "client", "--", "sh", "-c", ASK, &api];
    scene.state.kubectl_output(scene.programs, &words)
}

fn answered(output: &Output) -> bool {
    output.succeeded() && output.stdout.contains("gitVersion")
}

/// The pods of the fleet that answer.
fn fleet(scene: &Scene, url: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for _ in 0..10 {
        let output = scene.curl("shop", "client", url)?;
        names.extend(output.stdout.split_whitespace().last().map(str::to_owned));
    }
    Ok(names)
}

/// i. The API server, endpoints by hand, and a Deployment that grows and shrinks.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("curl in meshed pod shop/client: https://kubernetes.default at its ClusterIP, with the pod's own token");
    let output = asks_api(scene)?;
    step.check("the API server answers it", answered(&output), output.last_line());

    step.does("kubectl apply a Deployment, a Service whose EndpointSlice is written by hand, and a tenant's that leads to shop/web");
    scene.apply("services.yaml", &SERVICES.replace("WEB", &scene.address("shop", "web")?.to_string()))?;
    let url = |namespace, service| {
        Ok::<_, anyhow::Error>(format!("http://{}/", address(scene, namespace, service)?))
    };
    for (service, url) in [("shop/by-hand", url("shop", "by-hand")?), ("bank/stolen", url("bank", "stolen")?)]
    {
        let mut last = String::new();
        let reached = eventually("the slice to hold", Duration::from_secs(20), || {
            let output = scene.curl("shop", "client", &url)?;
            last = output.last_line().to_owned();
            Ok(output.succeeded())
        });
        step.check(&format!("shop/client reaches web by Service {service}"), reached.is_ok(), last);
        let refused = scene.curl("bank", "stranger", &url)?;
        step.check(
            &format!("bank/stranger does not: web's own rules judge it behind {service}"),
            !refused.succeeded(),
            refused.last_line(),
        );
    }

    step.does("kubectl scale the Deployment to 3, and back to 1");
    let url = url("shop", "fleet")?;
    for replicas in [1, 3, 1] {
        scene.kubectl(&["scale", "deployment", "-n", "shop", "fleet", &format!("--replicas={replicas}")])?;
        let mut names = BTreeSet::new();
        let moved = eventually("the traffic to move", Duration::from_secs(60), || {
            names = fleet(scene, &url)?;
            Ok(names.len() == replicas && names.iter().all(|name| name.starts_with("fleet-")))
        });
        step.check(&format!("{replicas} pod(s) answer"), moved.is_ok(), format!("{names:?}"));
    }
    scene.kubectl(&["delete", "deployment", "-n", "shop", "fleet"])?;

    step.does("defaultOutbound: deny, and the agents started anew");
    scene.configure("defaultOutbound", "deny")?;
    let output = asks_api(scene)?;
    step.check("the API server, which is in no mesh, is refused", !answered(&output), output.last_line());
    let web = format!("http://{}:8080/", scene.address("shop", "web")?);
    let output = scene.curl("shop", "client", &web)?;
    step.check("the control: web is reached", output.succeeded(), output.last_line());
    scene.configure("defaultOutbound", "allow")?;
    let output = asks_api(scene)?;
    step.check("with defaultOutbound: allow it answers again", answered(&output), output.last_line());
    Ok(())
}
