//! The lab's network: each host a network namespace of its own, all of them on one switch in another, so that the
//! machine's own network is not touched.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Hosts are `1..=HOSTS`.
pub(crate) const HOSTS: usize = 3;
/// Every namespace of every lab begins so; its process number follows.
const PREFIX: &str = "coact-lab-";
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// Loaded before a program's own allocator, which may read the clock before the false one is ready (jemalloc in Redis).
const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

/// A switch and its hosts, removed when dropped.
#[derive(Debug)]
pub(crate) struct Net {
    prefix: String,
}

/// As whom, and by which clock, a program runs on a host.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run<'a> {
    /// This user instead of root.
    pub(crate) user: Option<&'a str>,
    /// The wall clock is off by what this file says, as in [`step_clock`].
    pub(crate) clock: Option<&'a Path>,
}

impl Net {
    /// Says in one sentence what this machine lacks, if it lacks anything.
    pub(crate) fn preflight() -> Result<()> {
        for (program, package) in [("ip", "iproute2"), ("nft", "nftables"), ("setpriv", "util-linux")] {
            let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            ensure!(found.is_ok(), "the lab needs `{program}`: apt-get install {package}");
        }
        ensure!(Path::new(FAKETIME).exists(), "the lab needs {FAKETIME}: apt-get install faketime");
        let probe = format!("{PREFIX}{}-probe", std::process::id());
        run(Command::new("ip").args(["netns", "add", &probe]))
            .context("the lab needs network namespaces, so run it as root with CAP_NET_ADMIN and CAP_SYS_ADMIN")?;
        let rules = run(nft(&probe).arg("add table bridge probe"));
        run(Command::new("ip").args(["netns", "del", &probe]))?;
        rules.context("the lab needs nftables with the bridge family, to cut one direction of a link")
    }

    /// Builds the switch and the hosts; removes what labs left behind that were killed.
    pub(crate) fn new() -> Result<Self> {
        remove_leftovers();
        let net = Self { prefix: format!("{PREFIX}{}-", std::process::id()) };
        let switch = net.switch();
        run(Command::new("ip").args(["netns", "add", &switch]))?;
        net.on_switch(&["link", "add", "br0", "type", "bridge"])?;
        net.on_switch(&["link", "set", "br0", "up"])?;
        for host in 1..=HOSTS {
            let (name, port) = (net.host(host), port(host));
            run(Command::new("ip").args(["netns", "add", &name]))?;
            net.on_switch(&["link", "add", &port, "type", "veth", "peer", "name", "e0", "netns", &name])?;
            net.on_switch(&["link", "set", &port, "master", "br0", "up"])?;
            let on_host = |words: &[&str]| run(Command::new("ip").args(["-n", &name]).args(words));
            on_host(&["address", "add", &format!("{}/24", address(host)), "dev", "e0"])?;
            on_host(&["link", "set", "e0", "up"])?;
            on_host(&["link", "set", "lo", "up"])?;
        }
        run(nft(&switch).arg("add table bridge lab"))?;
        run(nft(&switch).arg("add chain bridge lab cut { type filter hook forward priority 0; }"))?;
        Ok(net)
    }

    /// A command that runs a program on a host. It keeps the process number, and dies with the lab.
    pub(crate) fn on(&self, host: usize, how: Run<'_>, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.host(host), "setpriv", "--pdeathsig", "KILL"]);
        if let Some(user) = how.user {
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        }
        command.args(["--", "env"]);
        if let Some(clock) = how.clock {
            command.arg(format!("LD_PRELOAD={FAKETIME}:{LIBC}"));
            command.arg(format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()));
            command.args(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]);
        }
        command.arg(program);
        command
    }

    /// Pulls the plug: nothing goes to or from this host.
    pub(crate) fn isolate(&self, host: usize) -> Result<()> {
        self.on_switch(&["link", "set", &port(host), "down"])
    }

    /// What this host sends is lost; what the others send reaches it.
    pub(crate) fn mute(&self, host: usize) -> Result<()> {
        let rule = format!("add rule bridge lab cut iifname \"{}\" drop", port(host));
        run(nft(&self.switch()).arg(rule))
    }

    /// Undoes every cut.
    pub(crate) fn heal(&self) -> Result<()> {
        run(nft(&self.switch()).arg("flush chain bridge lab cut"))?;
        (1..=HOSTS).try_for_each(|host| self.on_switch(&["link", "set", &port(host), "up"]))
    }

    fn host(&self, host: usize) -> String {
        format!("{}h{host}", self.prefix)
    }

    fn switch(&self) -> String {
        format!("{}switch", self.prefix)
    }

    fn on_switch(&self, words: &[&str]) -> Result<()> {
        run(Command::new("ip").args(["-n", &self.switch()]).args(words))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        remove_namespaces(|name| name.starts_with(&self.prefix));
    }
}

/// The address of a host.
pub(crate) fn address(host: usize) -> String {
    format!("10.77.0.{host}")
}

/// Sets how far off the clocks are that look at this file, for example `-3600`.
pub(crate) fn step_clock(file: &Path, seconds: i64) -> Result<()> {
    let beside = file.with_extension("new");
    fs::write(&beside, format!("{seconds:+}s\n"))?;
    // In one step: nobody reads half of it.
    fs::rename(&beside, file).with_context(|| format!("stepping the clock {}", file.display()))
}

/// The port of the switch that a host is plugged into.
fn port(host: usize) -> String {
    format!("p{host}")
}

fn nft(namespace: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "nft"]);
    command
}

/// A lab that was killed could not clean up.
fn remove_leftovers() {
    remove_namespaces(|name| {
        let number = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        number.is_some_and(|number| !Path::new("/proc").join(number).exists())
    });
}

fn remove_namespaces(which: impl Fn(&str) -> bool) {
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| which(name)) {
        // Nobody is left to be told if it fails.
        let _ = run(Command::new("ip").args(["netns", "del", &name]));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
