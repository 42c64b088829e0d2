//! The session of a handle: made anew when ZooKeeper has ended it.

use std::{future::Future, sync::Arc, time::Duration};

use coact_core::{Error, ErrorKind, Result, env::Env};
use parking_lot::Mutex as SyncMutex;
use tokio::sync::{Mutex, watch};
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, Error as Zk, Stat};

use crate::{
    config::Config,
    errors::{Access, closed, is_lost, translate, unanswered},
    paths::Paths,
};

/// The pause before a lost read is repeated.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// What requests go through.
pub(crate) struct Link {
    pub(crate) config: Config,
    pub(crate) env: Env,
    pub(crate) paths: Paths,
    client: SyncMutex<Option<Client>>,
    connecting: Mutex<()>,
    closed: watch::Sender<bool>,
}

impl Link {
    pub(crate) fn new(config: Config, env: Env) -> Self {
        Self {
            paths: Paths::new(&config.root, config.namespace.as_str()),
            config,
            env,
            client: SyncMutex::default(),
            connecting: Mutex::default(),
            closed: watch::Sender::new(false),
        }
    }

    /// How nodes are made, and whose they are.
    pub(crate) fn node(&self, mode: CreateMode) -> CreateOptions<'static> {
        mode.with_acls(if self.config.login.is_some() { Acls::creator_all() } else { Acls::anyone_all() })
    }

    /// Runs one request; it is sent when `request` is called. One that may be repeated is, until the time is over.
    pub(crate) async fn call<T, F>(&self, access: Access, request: impl Fn(Client) -> F) -> Result<Result<T, Zk>>
    where
        F: Future<Output = Result<T, Zk>>,
    {
        let attempts = self.attempts(access, request);
        tokio::select! {
            biased;
            () = self.until_closed() => Err(if access == Access::Once { closed().effect_unknown() } else { closed() }),
            answer = attempts => answer,
        }
    }

    async fn attempts<T, F>(&self, access: Access, request: impl Fn(Client) -> F) -> Result<Result<T, Zk>>
    where
        F: Future<Output = Result<T, Zk>>,
    {
        let end = self.env.now() + self.config.timeout;
        let mut pause = PAUSE;
        loop {
            let left = end.saturating_duration_since(self.env.now());
            let Some(client) = self.env.timeout(left, self.client()).await else {
                return Err(self.unreachable());
            };
            let source = match client {
                // It was not sent.
                Err(NotConnected::Final(error)) => return Err(error),
                Err(NotConnected::Yet(source)) => source,
                Ok(client) => {
                    let left = end.saturating_duration_since(self.env.now());
                    match self.env.timeout(left, request(client)).await {
                        None => return Err(unanswered(access, None)),
                        Some(Err(error)) if is_lost(&error) => {
                            if access == Access::Once {
                                return Err(unanswered(access, Some(error)));
                            }
                            error
                        }
                        Some(answer) => return Ok(answer),
                    }
                }
            };
            if self.env.now() + pause >= end {
                return Err(self.unreachable().with_source(source));
            }
            self.env.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Nothing was sent, or nothing that matters.
    fn unreachable(&self) -> Error {
        let Config { servers, timeout, .. } = &self.config;
        Error::new(ErrorKind::Unavailable, format!("no ZooKeeper server of {servers} answers within {timeout:?}"))
    }

    /// A read, of which the only failure is that there is nothing.
    pub(crate) async fn read<T, F>(&self, request: impl Fn(Client) -> F) -> Result<Option<T>>
    where
        F: Future<Output = Result<T, Zk>>,
    {
        match self.call(Access::Repeatable, request).await? {
            Ok(value) => Ok(Some(value)),
            Err(Zk::NoNode) => Ok(None),
            Err(error) => Err(translate(error, Access::Repeatable)),
        }
    }

    /// A node and what it holds, if it is there.
    pub(crate) async fn get(&self, path: &str) -> Result<Option<(Vec<u8>, Stat)>> {
        self.read(|client| async move { client.get_data(path).await }).await
    }

    /// A node without what it holds.
    pub(crate) async fn stat(&self, path: &str) -> Result<Option<Stat>> {
        Ok(self.read(|client| async move { client.check_stat(path).await }).await?.flatten())
    }

    /// The names of what is under a node; nothing if it is not there.
    pub(crate) async fn names(&self, path: &str) -> Result<Vec<String>> {
        Ok(self.read(|client| async move { client.list_children(path).await }).await?.unwrap_or_default())
    }

    /// Writes where it changes nothing, which a majority has to see: whatever this session reads next is as new.
    pub(crate) async fn freshen(&self) -> Result<()> {
        let now = &self.paths.now();
        self.read(|client| async move { client.set_data(now, b"", None).await }).await.map(drop)
    }

    /// Makes nodes that must be there, parents first.
    pub(crate) async fn make(&self, paths: &[String]) -> Result<()> {
        for path in paths {
            let options = &self.node(CreateMode::Persistent);
            let made = self
                .call(Access::Repeatable, |client| async move { client.create(path, b"", options).await.map(drop) })
                .await?;
            match made {
                Ok(()) | Err(Zk::NodeExists) => {}
                Err(error) => return Err(translate(error, Access::Repeatable)),
            }
        }
        Ok(())
    }

    /// The client, connected anew if its session is over.
    async fn client(&self) -> Result<Client, NotConnected> {
        if *self.closed.borrow() {
            return Err(NotConnected::Final(closed()));
        }
        if let Some(client) = self.current() {
            return Ok(client);
        }
        let _turn = self.connecting.lock().await;
        if let Some(client) = self.current() {
            return Ok(client);
        }
        let mut connector = Client::connector()
            .with_session_timeout(self.config.session)
            .with_connection_timeout(self.config.connect_timeout)
            .with_fail_eagerly();
        if let Some((user, password)) = &self.config.login {
            let password = password.expose().map_err(NotConnected::Final)?;
            connector = connector.with_auth("digest", format!("{user}:{password}").as_bytes());
        }
        let client = connector.connect(&self.config.servers).await.map_err(|error| match error {
            error if is_lost(&error) => NotConnected::Yet(error),
            error => NotConnected::Final(translate(error, Access::Repeatable)),
        })?;
        *self.client.lock() = Some(client.clone());
        Ok(client)
    }

    /// The session as it is, if there is one.
    pub(crate) fn current(&self) -> Option<Client> {
        self.client.lock().as_ref().filter(|client| !client.state().is_terminated()).cloned()
    }

    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
        *self.client.lock() = None;
    }

    pub(crate) async fn until_closed(&self) {
        let mut closed = self.closed.subscribe();
        // The sender lives as long as we do.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

/// Why there is no session.
enum NotConnected {
    Final(Error),
    Yet(Zk),
}

/// What tasks share.
pub(crate) type Shared = Arc<Link>;
