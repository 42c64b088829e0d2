//! Where the tour happens: at a node of our own, or at an engine that is there already.

use std::{net::TcpListener, path::Path, process::Stdio, time::Duration};

use coact::{
    Env, Error, KvHandle, Realm, Result, Store, Url,
    kv::{Order, Txn, Write},
};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::{Timeline, cannot, failed};

pub(super) struct Site {
    pub(super) env: Env,
    /// Where everybody works.
    pub(super) url: String,
    /// What is needed on the way.
    place: tempfile::TempDir,
    node: Option<Child>,
}

impl Site {
    pub(super) async fn begin(at: Option<&str>, env: &Env, show: &Timeline) -> Result<Self> {
        let url = match at {
            Some(at) => of_namespace(at, &format!("tour-{:016x}", env.random()))?,
            None => format!("coact://127.0.0.1:{}/tour", free_port()?),
        };
        let place = tempfile::Builder::new().prefix("coact-tour-").tempdir().map_err(cannot("make a directory"))?;
        let mut site = Self { env: env.clone(), url, place, node: None };
        if at.is_none() {
            site.start_node(show, "up").await?;
        } else {
            show.event(&format!("{} serves", site.open().await?.kv().describe()));
        }
        Ok(site)
    }

    /// Politely.
    pub(super) async fn end(mut self, show: &Timeline) -> Result<()> {
        let Some(mut node) = self.node.take() else {
            let store = self.open().await?;
            empty(store.kv()).await?;
            store.close().await?;
            show.event("the namespace is empty again");
            return Ok(());
        };
        terminate(&node)?;
        let status = node.wait().await.map_err(cannot("wait for the node"))?;
        if !status.success() {
            return Err(failed(format!("the node ended with {status}")));
        }
        show.event("the node ended politely");
        Ok(())
    }

    /// Whether there is a node that may be killed.
    pub(super) fn owns_node(&self) -> bool {
        self.node.is_some()
    }

    /// kill -9, and another one on the same directory.
    pub(super) async fn kill_node(&mut self, show: &Timeline, when: &str) -> Result<()> {
        let Some(mut node) = self.node.take() else { return Ok(()) };
        show.event(&format!("{when}: kill -9 of the node, pid {}", pid(&node)));
        kill(&mut node).await?;
        self.start_node(show, "up again").await
    }

    pub(super) async fn open(&self) -> Result<Store> {
        coact::open_store(&self.url).await
    }

    pub(super) async fn has_topics(&self) -> Result<bool> {
        let store = self.open().await?;
        let has = store.streams().is_ok();
        store.close().await?;
        Ok(has)
    }

    pub(super) fn place(&self) -> &Path {
        self.place.path()
    }

    async fn start_node(&mut self, show: &Timeline, how: &str) -> Result<()> {
        let address = self.url.trim_start_matches("coact://").split('/').next().unwrap_or_default().to_owned();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.place().join("node.log"))
            .map_err(cannot("open the node's log"))?;
        let mut node = command()?
            .args(["serve", "--listen", &address, "--data"])
            .arg(self.place().join("data"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(cannot("start the node"))?;
        loop {
            if let Some(status) = node.try_wait().map_err(cannot("look after the node"))? {
                let log = std::fs::read_to_string(self.place().join("node.log")).unwrap_or_default();
                return Err(failed(format!("the node ended with {status}: {log}")));
            }
            if self.open().await.is_ok() {
                show.event(&format!("the node is {how} on {address}, pid {}", pid(&node)));
                self.node = Some(node);
                return Ok(());
            }
            self.env.sleep(Duration::from_millis(20)).await;
        }
    }
}

/// This program once more; it ends with us.
pub(super) fn command() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().map_err(cannot("find this program"))?);
    command.kill_on_drop(true);
    Ok(command)
}

pub(super) async fn kill(child: &mut Child) -> Result<()> {
    child.kill().await.map_err(cannot("kill a process"))
}

/// Asks a process to end.
pub(super) fn terminate(child: &Child) -> Result<()> {
    let id = child.id().and_then(|id| Pid::from_raw(id as i32));
    let id = id.ok_or_else(|| failed("a process had ended before it was asked to"))?;
    rustix::process::kill_process(id, Signal::TERM).map_err(|error| cannot("end a process")(error.into()))
}

pub(super) fn pid(child: &Child) -> String {
    child.id().map_or("gone".to_owned(), |id| id.to_string())
}

/// The same engine with another namespace.
fn of_namespace(at: &str, namespace: &str) -> Result<String> {
    let url = Url::parse(at)?;
    if url.hosts().is_empty() {
        return Err(Error::invalid(format!(
            "{url} belongs to one process, and the tour has several: leave --at out, or name a server"
        )));
    }
    let (before, query) =
        at.split_once('?').map_or((at, String::new()), |(before, query)| (before, format!("?{query}")));
    let authority = before.strip_suffix(url.path()).unwrap_or(before);
    Ok(format!("{authority}/{namespace}{query}"))
}

/// Deletes all entries that the tour wrote.
async fn empty(kv: &KvHandle) -> Result<()> {
    let realm = Realm::default();
    loop {
        let dirs = kv.dirs(&realm, "", "", 100).await?;
        if dirs.is_empty() {
            return Ok(());
        }
        for dir in dirs {
            let page = kv.list(&dir, Order::Name { after: String::new() }, 1000).await?;
            for some in page.entries.chunks(kv.guarantees().limits.writes) {
                let writes = some.iter().map(|entry| Write::Delete(entry.key.clone())).collect();
                let _ = kv.txn(&realm, Txn { writes, ..Txn::default() }).await?;
            }
        }
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(cannot("find a free port"))?;
    Ok(listener.local_addr().map_err(cannot("find a free port"))?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_has_a_namespace_of_its_own() {
        for (at, expected) in [
            ("etcd://h:1", "etcd://h:1/t"),
            ("etcd://h:1,i:2/shop?timeout=1s", "etcd://h:1,i:2/t?timeout=1s"),
            ("redis://u:p@h/", "redis://u:p@h/t"),
        ] {
            assert_eq!(of_namespace(at, "t").expect("a server"), expected);
        }
        let error = of_namespace("embedded:///var/lib/coact", "t").expect_err("one process").to_string();
        assert!(error.contains("leave --at out"), "{error}");
    }
}
