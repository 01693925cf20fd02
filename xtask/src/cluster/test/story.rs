//! s: an application of two tenants and one who watches them: what is meant to pass passes, of all other pairs none.

use super::scene::Scene;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use xtask::demo::report::Step;
use xtask::lab::eventually;

const APPLICATION: &str = include_str!("story.yaml");
const RULES: &str = include_str!("story-rules.yaml");
const SCRAPE: &str = include_str!("story-scrape.yaml");
const ADMIN: &str = include_str!("story-admin.yaml");
const PROBE: &str = include_str!("probe.sh");
pub const NAMESPACES: [&str; 4] = ["books", "films", "watch", "street"];
/// Who asks: all pods of the application and one outside the mesh.
const CLIENTS: [&str; 8] = [
    "books/front",
    "books/registry",
    "books/store",
    "films/cache",
    "films/front",
    "films/ledger",
    "street/client",
    "watch/prometheus",
];
/// Every port that somebody serves: whose, how it is asked, and who is meant to be answered.
const ENDS: [(&str, &str, u16, &[&str]); 9] = [
    ("books/front", "http", 8080, &["films/front"]),
    ("books/store", "redis", 6379, &["books/front"]),
    ("books/registry", "grpc", 2379, &["books/front", "books/store"]),
    ("books/registry", "metrics", 2381, &["watch/prometheus"]),
    ("films/front", "http", 8080, &["books/front"]),
    ("films/cache", "redis", 6379, &["films/front"]),
    ("films/ledger", "grpc", 2379, &["films/front"]),
    ("films/ledger", "metrics", 2381, &[]),
    ("watch/prometheus", "metrics", 9090, &[]),
];

/// A client and a port of a workload.
pub type Pair = (String, String);

fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("", name))
}

/// s. The whole application.
pub fn show(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("kubectl apply nginx, Redis, etcd (gRPC) and Prometheus in three namespaces of the mesh, which denies, and a client outside");
    let ready = begin(scene);
    let kinds = "by HTTP, TCP, gRPC and a command";
    step.check("the kubelet's probes of every kind pass where nobody else may", ready.is_ok(), kinds);
    ready?;

    let mut served = BTreeSet::new();
    for (name, kind, port, _) in ENDS {
        let answers = ask(scene, name, &[(kind, "127.0.0.1".to_owned(), port)])?;
        served.extend(answers.into_iter().filter(|(_, said)| said.0).map(|_| (name, port)));
    }
    step.check(
        "the control: every port answers its own pod",
        served.len() == ENDS.len(),
        format!("{} of {}", served.len(), ENDS.len()),
    );
    let answered = answered(scene, &pairs())?;
    step.check("without a rule nobody is answered", answered.is_empty(), format!("{answered:?}"));

    step.does("kubectl apply Linkerd's rules for seven paths");
    scene.apply("story-rules.yaml", RULES)?;
    compare(scene, step, &intended(&[]))?;
    scraping(scene, step)?;
    shares(scene, step)?;
    scene.clear_namespaces(&NAMESPACES)
}

/// Starts the application, anew if it is there. Returns when it is ready.
pub fn begin(scene: &Scene) -> Result<()> {
    scene.clear_namespaces(&NAMESPACES)?;
    scene.apply("story.yaml", APPLICATION)?;
    eventually("the application to be ready", Duration::from_secs(120), || scene.all_ready(&NAMESPACES))
        .with_context(|| scene.said().unwrap_or_default())
}

/// Every client but a port's own pod, with that port.
pub fn pairs() -> BTreeSet<Pair> {
    let of = |(name, _, port, _): (&str, _, u16, _)| {
        let others = CLIENTS.iter().filter(move |client| **client != name);
        others.map(|client| ((*client).to_owned(), format!("{name}:{port}"))).collect::<Vec<_>>()
    };
    ENDS.into_iter().flat_map(of).collect()
}

/// The pairs that are meant to be answered, and more.
pub fn intended(more: &[(&str, &str)]) -> BTreeSet<Pair> {
    let of = |(name, _, port, clients): &(&str, &str, u16, &[&str])| {
        let end = format!("{name}:{port}");
        clients.iter().map(|client| ((*client).to_owned(), end.clone())).collect::<Vec<_>>()
    };
    let more = more.iter().map(|(client, end)| ((*client).to_owned(), (*end).to_owned()));
    ENDS.iter().flat_map(of).chain(more).collect()
}

/// What happens, what `heddle policy matrix` says and what is meant are one.
fn compare(scene: &Scene, step: &mut Step, intended: &BTreeSet<Pair>) -> Result<()> {
    let mut happened = BTreeSet::new();
    let same = eventually("the rules to hold", Duration::from_secs(30), || {
        happened = answered(scene, &pairs())?;
        Ok(happened == *intended)
    });
    let pairs = pairs().len();
    let differ: Vec<_> = happened.symmetric_difference(intended).collect();
    step.check(
        "of all pairs just those that are meant are answered",
        same.is_ok() && differ.is_empty(),
        format!("{} of {pairs} answered, other than meant: {differ:?}", happened.len()),
    );
    let said = matrix(scene)?;
    let allowed: BTreeSet<Pair> =
        said.iter().filter(|(_, verdict)| *verdict == "allowed").map(|(pair, _)| pair.clone()).collect();
    let differ: Vec<_> = allowed.symmetric_difference(&happened).collect();
    step.check(
        "heddle policy matrix --cluster says of each pair what happened",
        said.len() == pairs && differ.is_empty(),
        format!("{} pairs, {} allowed, other than happened: {differ:?}", said.len(), allowed.len()),
    );
    step.fact("pairs", json!({ "all": pairs, "answered": happened.len() }));
    Ok(())
}

/// Asks from a pod; of each port whether it answered and what came.
fn ask(
    scene: &Scene,
    client: &str,
    ends: &[(&str, String, u16)],
) -> Result<BTreeMap<String, (bool, String)>> {
    let (namespace, pod) = split(client);
    let words: Vec<String> = ends.iter().map(|(kind, host, port)| format!("{kind}@{host}:{port}")).collect();
    let mut all = vec!["exec", "-n", namespace, pod, "--", "sh", "-c", PROBE, "probe"];
    all.extend(words.iter().map(String::as_str));
    let said = scene.kubectl(&all)?;
    let answers: BTreeMap<String, (bool, String)> = said
        .lines()
        .filter_map(|line| {
            let (end, rest) = line.split_once(' ')?;
            let (answered, came) = rest.split_once(' ')?;
            Some((end.to_owned(), (answered == "yes", came.to_owned())))
        })
        .collect();
    ensure!(words.iter().all(|word| answers.contains_key(word)), "{client} does not tell of all: {said}");
    Ok(answers)
}

/// Tries pairs; those that were answered.
pub fn answered(scene: &Scene, pairs: &BTreeSet<Pair>) -> Result<BTreeSet<Pair>> {
    let mut ends = Vec::new();
    for (name, kind, port, _) in ENDS {
        let (namespace, pod) = split(name);
        ends.push((name, (kind, scene.address(namespace, pod)?.to_string(), port)));
    }
    let each = |client: &'static str| -> Result<Vec<Pair>> {
        let asks = |name, port| pairs.contains(&(client.to_owned(), format!("{name}:{port}")));
        let others: Vec<_> = ends.iter().filter(|(name, end)| asks(*name, end.2)).collect();
        if others.is_empty() {
            return Ok(Vec::new());
        }
        let asked: Vec<_> = others.iter().map(|(_, end)| end.clone()).collect();
        let said = ask(scene, client, &asked)?;
        let yes = |(kind, host, port): &(&str, String, u16)| {
            said.get(&format!("{kind}@{host}:{port}")).is_some_and(|(answered, _)| *answered)
        };
        let answered = others.into_iter().filter(|(_, end)| yes(end));
        Ok(answered.map(|(name, end)| (client.to_owned(), format!("{name}:{}", end.2))).collect())
    };
    std::thread::scope(|scope| {
        let asking = CLIENTS.map(|client| scope.spawn(move || each(client)));
        let mut all = BTreeSet::new();
        for one in asking {
            match one.join() {
                Ok(pairs) => all.extend(pairs?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

/// What Heddle says of each pair.
fn matrix(scene: &Scene) -> Result<BTreeMap<Pair, String>> {
    let mut words = vec!["policy", "matrix", "--cluster", "--output", "json"];
    words.extend(NAMESPACES.iter().flat_map(|name| ["--namespace", name]));
    let output = scene.heddle(&words)?;
    let told: Value = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut pairs = BTreeMap::new();
    for (end, cells) in list(&told["ends"]).iter().zip(list(&told["cells"])) {
        // `2379 (grpc)`.
        let port = text(&end["port"]).split(' ').next().unwrap_or_default().to_owned();
        let name = text(&end["to"]);
        if !ENDS.iter().any(|(known, _, number, _)| *known == name && number.to_string() == port) {
            continue;
        }
        for (client, cell) in list(&told["clients"]).iter().zip(list(&cells)) {
            let client = text(client).replace(" (not meshed)", "");
            if client == name || !CLIENTS.contains(&client.as_str()) {
                continue;
            }
            let answer = cell.as_u64().and_then(|it| usize::try_from(it).ok());
            let verdict = answer.map(|it| text(&told["answers"][it]["verdict"])).unwrap_or_default();
            pairs.insert((client, format!("{name}:{port}")), verdict);
        }
    }
    Ok(pairs)
}

/// Whom Prometheus reads: of each job whether it is up, and the error of the last time.
fn targets(scene: &Scene) -> Result<BTreeMap<String, (bool, String)>> {
    let url = "http://127.0.0.1:9090/api/v1/targets";
    let output = scene.curl("watch", "prometheus", url)?;
    let told: Value = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
    let active = told["data"]["activeTargets"].as_array().into_iter().flatten();
    Ok(active
        .map(|it| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&it["labels"]["job"]), (it["health"] == "up", text(&it["lastError"])))
        })
        .collect())
}

/// A tenant is read by whom it lets read it, and by nobody else.
fn scraping(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("Prometheus scrapes the metrics of both tenants by their Services' names; only books lets it");
    let mut told = BTreeMap::new();
    let scraped = eventually("both to be tried", Duration::from_secs(30), || {
        told = targets(scene)?;
        let up = |job: &str| told.get(job).is_some_and(|it| it.0);
        Ok(up("books") && !up("films") && told.get("films").is_some_and(|it| !it.1.is_empty()))
    });
    step.check("it reads books and is refused by films", scraped.is_ok(), format!("{told:?}"));
    step.does("heddle policy explain --cluster: may Prometheus read books, may films/front?");
    for (client, may) in [("watch/prometheus", true), ("films/front", false)] {
        let words = ["policy", "explain", "--cluster", "--from", client, "--to", "books/registry:2381"];
        let output = scene.heddle(&words)?;
        let verdict = if may { "ALLOWED" } else { "REFUSED" };
        let said = output.stdout.lines().find(|line| line.starts_with(verdict));
        let names = output.stdout.contains("AuthorizationPolicy books/registry-metrics");
        step.check(
            &format!("{client} {}, and by the rule that it names", if may { "may" } else { "may not" }),
            said.is_some() && names,
            said.unwrap_or(&output.stdout),
        );
    }
    step.does("kubectl apply a Server on films' port named metrics, and a policy that lets Prometheus in");
    scene.apply("story-scrape.yaml", SCRAPE)?;
    let scraped = eventually("both to be read", Duration::from_secs(30), || {
        told = targets(scene)?;
        Ok(["books", "films"].iter().all(|job| told.get(*job).is_some_and(|it| it.0)))
    });
    step.check("it reads both", scraped.is_ok(), format!("{told:?}"));
    compare(scene, step, &intended(&[("watch/prometheus", "films/ledger:2381")]))
}

/// What the agents count of a pod is read at the pod's port `linkerd-admin`, by whom a Server there lets in.
fn shares(scene: &Scene, step: &mut Step) -> Result<()> {
    step.does("kubectl apply a Server on the port named linkerd-admin of all pods of books, and a policy that lets Prometheus in");
    let jobs = ["books-share", "films-share"];
    let mut told = targets(scene)?;
    let up = |told: &BTreeMap<String, (bool, String)>| jobs.map(|job| told.get(job).is_some_and(|it| it.0));
    step.check(
        "the control: before, it reads neither tenant's",
        up(&told) == [false, false],
        format!("{told:?}"),
    );
    scene.apply("story-admin.yaml", ADMIN)?;
    let scraped = eventually("the share to be read", Duration::from_secs(30), || {
        told = targets(scene)?;
        Ok(up(&told) == [true, false])
    });
    let films = told.get("films-share").map(|it| it.1.as_str()).unwrap_or_default();
    step.check("it reads books' share and is refused by films", scraped.is_ok(), films);
    let url = format!("http://{}:4191/metrics", scene.address("books", "front")?);
    let text = scene.curl("watch", "prometheus", &url)?.stdout;
    let own = |line: &&str| line.contains("namespace=\"books\",pod=\"front\"");
    let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    step.check(
        "the share of books/front is of it alone, and tells of its clients",
        series.iter().all(own) && text.contains("client_id=\"front.films."),
        format!("{} series, {} of others", series.len(), series.iter().filter(|it| !own(it)).count()),
    );
    for client in ["films/front", "books/store", "street/client"] {
        let (namespace, pod) = split(client);
        let read = scene.curl(namespace, pod, &url)?;
        step.check(
            &format!("{client} reads nothing of it"),
            !read.stdout.contains("tcp_open"),
            read.stderr.trim(),
        );
    }
    Ok(())
}
