//! b. Another identity, no identity, a made-up identity.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::{
    demo::{
        report::Step,
        scene::{NODE_B, Page, Scene, field, patience, quote},
        steps::wire::WithoutMesh,
    },
    lab::{OUTSIDE, Place, apps, apps::Attempt, eventually},
};

pub fn show(scene: &mut Scene, _: Option<&WithoutMesh>, step: &mut Step) -> Result<()> {
    let to = (scene.web.v4, 8080).into();
    let (heddle, socket) =
        (scene.heddle.display().to_string(), scene.agent(NODE_B)?.socket().display().to_string());
    let followed = scene.agent(NODE_B)?.place().spawn(&[&heddle, "events", "--socket", &socket])?;
    step.does("curl to shop/web in shop/stranger: meshed, but of an identity that no rule names");
    let page =
        refused(scene, step, "other_identity", scene.stranger.place(), |place| scene.curl(place, to, &[]))?;
    step.check("a meshed client of another identity is refused", page.refused(), page.summary());
    explain(scene, step, "other_identity", &["unauthorized"], Some("shop/web"));

    step.does("curl to shop/web in default/plain: in no mesh");
    let page = refused(scene, step, "unmeshed", scene.plain.place(), |place| scene.curl(place, to, &[]))?;
    step.check("an unmeshed client is refused", page.refused(), page.summary());
    explain(scene, step, "unmeshed", &["no_identity", "unauthorized"], None);

    let [office, _] = OUTSIDE;
    step.does(format!(
        "curl to shop/web from {office}, in no mesh, but named by NetworkAuthentication shop/office"
    ));
    let page = scene.curl(scene.lab.outside(), to, &[])?;
    step.check("an unmeshed client that a rule names by address is let in", page.arrived(), page.summary());
    let outcome = apps::connect(scene.lab.outside(), &Attempt::new((scene.echo.v4, 7000), "by address"))?;
    step.check("so it is on an opaque port", outcome.received == "by address", outcome.summary());
    self_made(scene, step)?;

    step.does("`heddle events` on node-b, followed all the while");
    // On a busy machine it may have begun after the first of them.
    let told = eventually("a refusal to be told of", Duration::from_secs(10), || {
        let told = followed.stdout().contains("unauthorized");
        if !told {
            scene.curl(scene.stranger.place(), to, &[])?;
        }
        Ok(told)
    });
    let printed = followed.stdout();
    step.shows(&printed.lines().take(6).collect::<Vec<_>>().join("\n"));
    let lines = printed.lines().count();
    step.check("the agent's events can be followed live", told.is_ok(), format!("{lines} lines"));
    Ok(())
}

fn refused(
    scene: &Scene,
    step: &mut Step,
    fact: &str,
    place: &Place,
    attempt: impl Fn(&Place) -> Result<Page>,
) -> Result<Page> {
    scene.forget_events();
    let page = attempt(place)?;
    // curl's own code, and the errno that an application in the same pod would see.
    let errno = apps::connect(place, &Attempt::new((scene.web.v4, 8080), "GET / HTTP/1.0\r\n\r\n"))?;
    step.fact(
        fact,
        json!({ "curl": page.output.code, "said": page.output.last_line(), "errno": errno.error, "step": errno.step,
                "closed": errno.closed, "bytes": errno.received.len() }),
    );
    Ok(page)
}

/// The far node's agent must have told why, and by which rule where there is one.
fn explain(scene: &Scene, step: &mut Step, fact: &str, reasons: &[&str], rule: Option<&str>) {
    let event = scene.told(NODE_B, reasons);
    step.why(quote(NODE_B, event.as_ref()));
    let named = field(event.as_ref(), "rule");
    let held = event.is_some() && rule.is_none_or(|rule| named.contains(rule));
    step.check(
        "the agent tells the reason and the rule",
        held,
        format!("{} {named:?}", field(event.as_ref(), "reason")),
    );
    step.fact(&format!("{fact}_event"), event.unwrap_or_default());
}

/// From where plain bytes are let in: what is refused here is the certificate and nothing else.
fn self_made(scene: &Scene, step: &mut Step) -> Result<()> {
    let path = scene.lab.directory().join("outside/self-made").display().to_string();
    let (cert, key) = (format!("{path}.crt"), format!("{path}.key"));
    scene.lab.outside().shell(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=client \
         -addext subjectAltName=DNS:{} -keyout {key} -out {cert} 2>{path}.log || {{ cat {path}.log >&2; exit 1; }}",
        scene.client.identity()
    ))?;
    let name = scene.web.identity();
    step.does(format!(
        "the same with TLS for {name} and a self-made certificate that says {}",
        scene.client.identity()
    ));
    scene.forget_events();
    let resolve = format!("{name}:8080:{}", scene.web.v4);
    let url = format!("https://{name}:8080/");
    let page = Page::read(scene.lab.outside().run(&[
        "curl",
        "-sS",
        "-w",
        "\n%{http_code} %{time_total}",
        "-k",
        "--tlsv1.3",
        "--max-time",
        &patience(),
        "--noproxy",
        "*",
        "--cert",
        &cert,
        "--key",
        &key,
        "--resolve",
        &resolve,
        &url,
    ])?);
    step.check("a self-made certificate opens nothing", page.refused(), page.summary());
    step.fact("self_made", json!({ "curl": page.output.code, "said": page.output.last_line() }));
    explain(scene, step, "self_made", &["tls_failed", "no_identity"], None);
    Ok(())
}
