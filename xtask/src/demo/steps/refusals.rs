//! b. Another identity, no identity, a made-up identity.

use anyhow::Result;
use serde_json::json;

use crate::{
    demo::{
        report::Step,
        scene::{NODE_B, Page, Scene, field, quote},
        steps::wire::WithoutMesh,
    },
    lab::{OUTSIDE, Place, apps, apps::Attempt},
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
        "the same from {office}, to the echo server, where NetworkAuthentication shop/office names it"
    ));
    let outcome = apps::connect(scene.lab.outside(), &Attempt::new((scene.echo.v4, 7000), "by address"))?;
    step.check(
        "an unmeshed client that a rule names by address is let in",
        outcome.received == "by address",
        outcome.summary(),
    );

    let certificate = self_made(scene)?;
    let (cert, key) = (format!("{certificate}.crt"), format!("{certificate}.key"));
    let name = scene.web.identity();
    step.does(format!(
        "curl https://{name}:8080 in default/plain, with a certificate of its own making for {}",
        scene.client.identity()
    ));
    let resolve = format!("{name}:8080:{}", scene.web.v4);
    let url = format!("https://{name}:8080/");
    let page = refused(scene, step, "self_made", scene.plain.place(), |place| {
        let output = place.run(&[
            "curl",
            "-sS",
            "-w",
            "\n%{http_code} %{time_total}",
            "-k",
            "--tlsv1.3",
            "--max-time",
            "5",
            "--noproxy",
            "*",
            "--cert",
            &cert,
            "--key",
            &key,
            "--resolve",
            &resolve,
            &url,
        ])?;
        Ok(Page::read(output))
    })?;
    step.check("a self-made certificate opens nothing", page.refused(), page.summary());
    explain(scene, step, "self_made", &["tls_failed", "no_identity", "unauthorized"], None);

    step.does("`heddle events` on node-b, followed all the while");
    let printed = followed.stdout();
    step.shows(&printed.lines().take(6).collect::<Vec<_>>().join("\n"));
    let lines = printed.lines().count();
    step.check(
        "the agent's events can be followed live",
        printed.contains("unauthorized"),
        format!("{lines} lines"),
    );
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

fn self_made(scene: &Scene) -> Result<String> {
    let path = scene.plain.directory().join("self-made").display().to_string();
    scene.plain.place().shell(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=client \
         -addext subjectAltName=DNS:{} -keyout {path}.key -out {path}.crt 2>{path}.log || {{ cat {path}.log >&2; exit 1; }}",
        scene.client.identity()
    ))?;
    Ok(path)
}
