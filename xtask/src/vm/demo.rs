//! `cargo xtask vm demo`: two machines, two kernels, a node on each; and what only machines can suffer.

use super::architecture::{Architecture, Emulator};
use super::boot;
use super::guest::Guest;
use super::initramfs;
use super::kernel::{self, Kernel, Version};
use super::pair::{Machine, Parts};
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use xtask::demo::report::{self, Step};
use xtask::machines::{Ask, CLIENT, PLAIN, Told, WEB};

/// Boot two machines that a link joins, an agent and pods on each, and show what namespaces cannot
///
/// Mutual TLS from one machine to the other, captured on the link; a link that loses, reorders and repeats packets, small
/// and large packets, IPv6 alone; the power cut during traffic, a boot without the agent, one with the agent late, and
/// clocks an hour apart; with `--earlier` two builds of Heddle side by side. Works without KVM and without root; takes five to fifteen minutes then.
#[derive(clap::Args)]
pub struct Arguments {
    /// Kernel series of the first and the second machine
    #[arg(long, value_name = "VERSION", num_args = 1, default_values = ["6.1", "6.12"])]
    kernel: Vec<Version>,
    /// The agent of an earlier build, for machine 2 in a last step
    #[arg(long, value_name = "FILE")]
    earlier: Option<PathBuf>,
    /// How many seconds a machine may take from power-on until it answers
    #[arg(long, value_name = "SECONDS", default_value = "400")]
    limit: u64,
}

const WEB_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 2, 10));
const WEB_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 10));
const ORDERS_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 1, 12));

/// Shows every step; the code says whether each was seen.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    ensure!(arguments.kernel.len() == 2, "two machines: name two kernels, as in --kernel 6.1 --kernel 6.12");
    let guest = Guest::prepare(workspace, Architecture::own()?, "dev")?;
    let folder = workspace.target.join("vm/pair");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut kinds = Vec::new();
    for (number, version) in (1..).zip(&arguments.kernel) {
        let kernel = kernel::find(workspace, version, Architecture::own()?)?;
        let own = folder.join(format!("{number}-{}", kernel.release));
        fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
        let mut contents = guest.contents(include_str!("act.sh"));
        if let Some(earlier) = arguments.earlier.as_ref().filter(|_| number == EARLIER) {
            contents.others.push((earlier.clone(), PathBuf::from("usr/local/bin/heddle-earlier")));
        }
        let image = initramfs::build(&kernel, &contents, &own)?;
        kinds.push(Kind { kernel, initramfs: image.file });
    }
    let began = Instant::now();
    let mut pair = Pair {
        accelerator: if guest.emulator.may_use_kvm() { "kvm" } else { "tcg" },
        emulator: guest.emulator,
        kinds,
        folder,
        limit: Duration::from_secs(arguments.limit),
        machines: [None, None],
    };
    let mut shown = Vec::new();
    let acts: Vec<_> = ACTS.into_iter().chain(arguments.earlier.is_some().then_some(TWO_BUILDS)).collect();
    let outcome = pair.play(&acts, &mut shown);
    report::summary(&shown, began.elapsed());
    outcome?;
    Ok(if shown.iter().all(Step::seen) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// CNI's specification: the runtime should try again later.
const TRY_AGAIN: u64 = 11;
/// What the plugin says of an agent that is not there.
const AWAY: &str = "which is away";

/// A kernel with its file system.
struct Kind {
    kernel: Kernel,
    initramfs: PathBuf,
}

struct Pair {
    emulator: Emulator,
    accelerator: &'static str,
    kinds: Vec<Kind>,
    folder: PathBuf,
    limit: Duration,
    machines: [Option<Machine>; 2],
}

type Act = fn(&mut Pair, &mut Step) -> Result<()>;

const ACTS: [(&str, Act); 7] = [
    ("Two machines, two kernels: what the link between them carries", Pair::link),
    ("Whoever is in no mesh is refused from machine to machine", Pair::stranger),
    ("A link that loses, reorders and repeats packets", Pair::bad_link),
    ("Packets of 1280 and of 9000 bytes; IPv6 alone", Pair::sizes),
    ("The power cut during traffic, and a boot without the agent", Pair::power_cut),
    ("The agent starts late", Pair::late),
    ("Clocks an hour apart", Pair::clocks),
];
const TWO_BUILDS: (&str, Act) = ("An earlier build on the second machine", Pair::two_builds);
/// The machine that has the earlier build.
const EARLIER: u8 = 2;

/// What curl brought.
struct Page {
    status: u16,
    whole: bool,
    summary: String,
}

/// What the link carried.
struct Heard {
    hits: usize,
    packets: usize,
    all_tls: bool,
    encrypted: usize,
}

impl Pair {
    fn play(&mut self, acts: &[(&'static str, Act)], shown: &mut Vec<Step>) -> Result<()> {
        for number in [1, 2] {
            self.power_on(number, "")?;
        }
        for (letter, &(title, act)) in ('a'..).zip(acts) {
            let mut step = Step::begin(letter, title);
            let result = act(self, &mut step);
            if let Err(error) = &result {
                step.check("the step could be carried out", false, format!("{error:#}"));
            }
            step.end();
            shown.push(step);
            result.with_context(|| format!("step {letter} could not be carried out"))?;
        }
        Ok(())
    }

    fn power_on(&mut self, number: u8, words: &str) -> Result<()> {
        let index = usize::from(number - 1);
        let kind = &self.kinds[index];
        eprintln!("machine {number}: booting {}", kind.kernel.release);
        let parts = Parts {
            boot: boot::Boot {
                emulator: &self.emulator,
                kernel: &kind.kernel.image,
                initramfs: &kind.initramfs,
                memory: 1536,
            },
            accelerator: self.accelerator,
            folder: &self.folder,
            limit: self.limit,
        };
        self.machines[index] = Some(Machine::power_on(&parts, number, words)?);
        Ok(())
    }

    fn machine(&mut self, number: u8) -> Result<&mut Machine> {
        self.machines[usize::from(number - 1)].as_mut().with_context(|| format!("machine {number} is off"))
    }

    fn fetch(&mut self, on: u8, from: &str, to: IpAddr) -> Result<Page> {
        match self.machine(on)?.ask(&Ask::Fetch { from: from.into(), to })? {
            Told::Page { status, whole, summary } => Ok(Page { status, whole, summary }),
            other => anyhow::bail!("curl was answered by {other:?}"),
        }
    }

    fn listen(&mut self) -> Result<()> {
        self.machine(1)?.text(&Ask::Listen).map(drop)
    }

    fn heard(&mut self) -> Result<Heard> {
        match self.machine(1)?.ask(&Ask::Heard)? {
            Told::Heard { hits, packets, all_tls, encrypted } => {
                Ok(Heard { hits, packets, all_tls, encrypted })
            }
            other => anyhow::bail!("the capture was answered by {other:?}"),
        }
    }

    fn shell(&mut self, on: u8, script: &str) -> Result<String> {
        self.machine(on)?.text(&Ask::Shell(script.into()))
    }

    /// Gives the second machine's agent the first one's authority, and starts it.
    fn start_second(&mut self) -> Result<()> {
        let authority = self.machine(1)?.text(&Ask::Authority)?;
        let second = self.machine(2)?;
        second.text(&Ask::Trust(authority))?;
        second.text(&Ask::Start).map(drop)
    }

    /// Fetches the page until it comes, within the machine's limit.
    fn until_served(&mut self) -> Result<(Page, Duration)> {
        let began = Instant::now();
        loop {
            let page = self.fetch(1, CLIENT, WEB_V4)?;
            if page.whole || began.elapsed() > self.limit {
                return Ok((page, began.elapsed()));
            }
        }
    }

    fn link(&mut self, step: &mut Step) -> Result<()> {
        for number in [1, 2] {
            let release = self.machine(number)?.text(&Ask::Who)?;
            step.does(format!("machine {number} is up: kernel {release}"));
        }
        step.does(
            "no agent yet: curl in shop/client on machine 1 to shop/web on machine 2, tcpdump on the link",
        );
        self.listen()?;
        let page = self.fetch(1, CLIENT, WEB_V4)?;
        let heard = self.heard()?;
        step.check(
            "without the mesh the capture sees the marker",
            page.whole && heard.hits > 0,
            format!("{}; {} times the marker in {} packets", page.summary, heard.hits, heard.packets),
        );
        step.does("an agent on each, with the same authority");
        self.machine(1)?.text(&Ask::Start)?;
        self.start_second()?;
        for to in [WEB_V4, WEB_V6] {
            self.listen()?;
            let page = self.fetch(1, CLIENT, to)?;
            let heard = self.heard()?;
            step.check(&format!("the permitted request to {to} is answered"), page.whole, page.summary);
            step.check(
                "not one byte of the marker is on the link, and what the pods exchange is TLS 1.3",
                heard.hits == 0 && heard.all_tls && heard.encrypted > 0,
                format!(
                    "{} times the marker in {} packets, {} encrypted records, nothing but TLS: {}",
                    heard.hits, heard.packets, heard.encrypted, heard.all_tls
                ),
            );
        }
        Ok(())
    }

    fn stranger(&mut self, step: &mut Step) -> Result<()> {
        step.does("curl in default/plain, which is in no mesh, on machine 1 to shop/web on machine 2");
        let page = self.fetch(1, PLAIN, WEB_V4)?;
        step.check("it is refused", page.status == 0, page.summary);
        let page = self.fetch(2, WEB, ORDERS_V4)?;
        step.check("the other way, from the identity that the rule names, it goes", page.whole, page.summary);
        Ok(())
    }

    fn bad_link(&mut self, step: &mut Step) -> Result<()> {
        let netem = "tc qdisc replace dev eth0 root netem delay 3ms 2ms loss 3% duplicate 3% reorder 10% 50%";
        step.does(format!("on both machines: {netem}"));
        for number in [1, 2] {
            self.shell(number, netem)?;
        }
        self.listen()?;
        let mut whole = 0;
        for _ in 0..8 {
            whole += usize::from(self.fetch(1, CLIENT, WEB_V4)?.whole);
        }
        let heard = self.heard()?;
        step.check("every page comes whole", whole == 8, format!("{whole} of 8 pages"));
        step.check(
            "and still nothing in the clear",
            heard.hits == 0,
            format!("{} times the marker in {} packets", heard.hits, heard.packets),
        );
        let mut dropped = 0;
        for number in [1, 2] {
            let counters = self.shell(number, "tc -s qdisc show dev eth0")?;
            step.shows(counters.trim());
            dropped += dropped_of(&counters);
            self.shell(number, "tc qdisc del dev eth0 root")?;
        }
        step.check("control: packets were really lost", dropped > 0, format!("{dropped} dropped"));
        Ok(())
    }

    fn sizes(&mut self, step: &mut Step) -> Result<()> {
        for mtu in [1280, 9000] {
            for number in [1, 2] {
                self.shell(number, &format!("ip link set eth0 mtu {mtu}"))?;
            }
            let page = self.fetch(1, CLIENT, WEB_V4)?;
            step.check(&format!("an MTU of {mtu} bytes: the page comes whole"), page.whole, page.summary);
        }
        for number in [1, 2] {
            self.shell(number, "ip link set eth0 mtu 1500")?;
        }
        step.does("the link's IPv4 addresses taken away");
        for number in [1, 2] {
            self.shell(number, &format!("ip addr del 10.76.0.{number}/24 dev eth0"))?;
        }
        let page = self.fetch(1, CLIENT, WEB_V6)?;
        step.check("by IPv6 alone the page comes whole", page.whole, page.summary);
        for number in [1, 2_u8] {
            let (other, last) = (3 - number, number);
            self.shell(
                number,
                &format!(
                    "ip addr add 10.76.0.{last}/24 dev eth0; \
                     ip route add 10.77.{other}.0/24 via 10.76.0.{other}; \
                     ip route add 10.79.{other}.0/24 via 10.76.0.{other}"
                ),
            )?;
        }
        let page = self.fetch(1, CLIENT, WEB_V4)?;
        step.check("and by IPv4 again", page.whole, page.summary);
        Ok(())
    }

    fn power_cut(&mut self, step: &mut Step) -> Result<()> {
        self.listen()?;
        self.machine(1)?.text(&Ask::Press { from: CLIENT.into(), to: WEB_V4 })?;
        std::thread::sleep(Duration::from_secs(3));
        step.does("machine 2 loses its power while shop/client fetches page after page");
        self.machines[1] = None;
        std::thread::sleep(Duration::from_secs(2));
        self.machine(1)?.text(&Ask::Calm)?;
        let page = self.fetch(1, CLIENT, WEB_V4)?;
        step.check("with the other machine gone a request fails", page.status == 0, page.summary);
        step.does("machine 2 boots; its pods run, its agent does not");
        self.power_on(2, "")?;
        let page = self.fetch(1, CLIENT, WEB_V4)?;
        step.check("the meshed pod that is not captured is not spoken to", page.status == 0, page.summary);
        let why = self.machine(1)?.text(&Ask::Why)?;
        step.why(why);
        let heard = self.heard()?;
        step.check(
            "from before the cut until now nothing went to it in the clear",
            heard.hits == 0,
            format!("{} times the marker in {} packets", heard.hits, heard.packets),
        );
        let page = self.fetch(2, WEB, ORDERS_V4)?;
        step.check("and it reaches nobody in the mesh", page.status == 0, page.summary);
        // What a pod that nobody captured says to others is its own: the container network's gate is what keeps it
        // from starting so.
        let (code, message) = self.added()?;
        step.check(
            "the CNI plugin, asked as a container runtime asks, does not let it start",
            code == Some(TRY_AGAIN) && message.contains(AWAY),
            message,
        );
        Ok(())
    }

    fn late(&mut self, step: &mut Step) -> Result<()> {
        step.does("the agent of machine 2 starts now");
        self.start_second()?;
        let (page, took) = self.until_served()?;
        step.check(
            "traffic flows again",
            page.whole,
            format!("{}, {:.1} s after it", page.summary, took.as_secs_f64()),
        );
        let (code, message) = self.added()?;
        // That it takes no pod whose addresses it is told belongs to an agent that follows a folder, as this one does.
        let asked = code.is_some() && !message.contains(AWAY);
        step.check("control: the CNI plugin, asked again, has the agent's own answer", asked, message);
        Ok(())
    }

    fn clocks(&mut self, step: &mut Step) -> Result<()> {
        step.does("machine 2 boots again, its clock an hour ahead, and its agent starts");
        self.power_on(2, "heddle.ahead=3600")?;
        self.start_second()?;
        self.listen()?;
        let page = self.fetch(1, CLIENT, WEB_V4)?;
        let why = self.machine(1)?.text(&Ask::Why)?;
        let heard = self.heard()?;
        step.check("a certificate that is not valid yet is refused", page.status == 0, page.summary);
        step.check("and the agent says that it is for its time", why.contains("valid"), why);
        step.check(
            "nothing goes in the clear instead",
            heard.hits == 0,
            format!("{} times the marker in {} packets", heard.hits, heard.packets),
        );
        step.does("machine 2 boots with the right clock");
        self.power_on(2, "")?;
        self.start_second()?;
        let (page, _) = self.until_served()?;
        step.check("and the page comes again", page.whole, page.summary);
        Ok(())
    }

    fn two_builds(&mut self, step: &mut Step) -> Result<()> {
        step.does("machine 2 boots again, and an earlier build's agent starts there");
        self.power_on(EARLIER, "heddle.earlier")?;
        step.shows(self.shell(EARLIER, "heddle-earlier version; heddle version")?.trim());
        self.start_second()?;
        let (page, _) = self.until_served()?;
        step.check("this build's pod reaches the earlier one's", page.whole, page.summary);
        self.listen()?;
        let page = self.fetch(2, WEB, ORDERS_V4)?;
        step.check("the earlier one's reaches this build's", page.whole, page.summary);
        let page = self.fetch(1, CLIENT, WEB_V6)?;
        let heard = self.heard()?;
        step.check(
            "all of it is TLS 1.3 on the link, and not one byte of the marker",
            page.whole && heard.hits == 0 && heard.all_tls && heard.encrypted > 0,
            format!(
                "{}; {} times the marker in {} packets, {} encrypted records",
                page.summary, heard.hits, heard.packets, heard.encrypted
            ),
        );
        let page = self.fetch(1, PLAIN, WEB_V4)?;
        step.check("whoever is in no mesh is refused", page.status == 0, page.summary);
        Ok(())
    }

    /// What the CNI plugin of machine 2 says of the server there: its error's code, if it is one, and its words.
    fn added(&mut self) -> Result<(Option<u64>, String)> {
        let text = self.machine(2)?.text(&Ask::Add(WEB.into()))?;
        let told: Value = serde_json::from_str(&text)
            .with_context(|| format!("the plugin's answer is no JSON: {text:?}"))?;
        let message = told["msg"].as_str().unwrap_or(&text).to_owned();
        Ok((told["code"].as_u64(), message))
    }
}

/// How many packets a queue says that it dropped, in the words of `tc -s`.
fn dropped_of(counters: &str) -> u64 {
    counters
        .split("(dropped ")
        .skip(1)
        .filter_map(|rest| rest.split(',').next()?.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_dropped_is_read_from_tc() {
        let text =
            " Sent 1 bytes 2 pkt (dropped 17, overlimits 0 requeues 0)\n Sent (dropped 3, overlimits 0";
        assert_eq!(super::dropped_of(text), 20);
        assert_eq!(super::dropped_of("nothing"), 0);
    }
}
