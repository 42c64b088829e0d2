//! Connections for requests: a pool, and requests that are repeated where that is safe.

use std::{
    fmt,
    future::Future,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use coact_core::{Error, Result, env::Env, error::Effect};
use deadpool_postgres::{ConfigConnectImpl, Connect, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod};
use futures::future::BoxFuture;
use tokio_postgres::{
    Row, Transaction,
    types::{ToSql, Type},
};

use crate::{
    config::Config,
    errors::{Access, Failure, closed},
};

/// The longest pause before a request is repeated.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// The parameters of a statement with their types: so that one round trip is enough, and nothing stays prepared in a
/// session, which a pooler may give to somebody else.
pub(crate) type Params<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// Where a statement runs.
pub(crate) trait Executor {
    fn query(&self, access: Access, sql: &str, params: Params<'_>) -> impl Future<Output = Result<Vec<Row>>> + Send;
}

/// Connects to the first host that takes writes.
struct Connector {
    config: Config,
    env: Env,
}

impl Connect for Connector {
    fn connect(&self, _first: &tokio_postgres::Config) -> BoxFuture<'_, Result<Connected, tokio_postgres::Error>> {
        let tls = &self.config.tls;
        Box::pin(first_host(&self.config, &self.env, |host| {
            let pooled = ConfigConnectImpl { tls: tls.clone() };
            Box::pin(async move { pooled.connect(&host).await })
        }))
    }
}

type Connected = (tokio_postgres::Client, tokio::task::JoinHandle<()>);

/// Tries host after host. One that accepts a connection and then says nothing must not keep us from the next; how long
/// the last one may take is up to the caller.
pub(crate) async fn first_host<T>(
    config: &Config,
    env: &Env,
    connect: impl Fn(tokio_postgres::Config) -> BoxFuture<'static, Result<T, tokio_postgres::Error>>,
) -> Result<T, tokio_postgres::Error> {
    let (last, others) = config.hosts.split_last().expect("a URL has a host");
    for host in others {
        if let Some(Ok(connected)) = env.timeout(config.connect_timeout, connect(host.clone())).await {
            return Ok(connected);
        }
    }
    connect(last.clone()).await
}

#[derive(Clone, Copy)]
enum Request<'a> {
    Statement(&'a str, Params<'a>),
    Batch(&'a str),
}

pub(crate) struct Connections {
    pub(crate) config: Config,
    pub(crate) env: Env,
    pool: Pool,
    closed: AtomicBool,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connections({})", self.config.description)
    }
}

impl Connections {
    pub(crate) fn new(config: Config, env: Env) -> Result<Self> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let connector = Connector { config: config.clone(), env: env.clone() };
        // The first host stands for all: the connector knows them.
        let manager = Manager::from_connect(config.hosts[0].clone(), connector, recycling);
        let pool = Pool::builder(manager)
            .max_size(config.pool)
            .build()
            .map_err(|error| Error::invalid(format!("{} cannot be used", config.description)).with_source(error))?;
        Ok(Self { config, env, pool, closed: AtomicBool::new(false) })
    }

    /// Runs one statement, which is a transaction of its own.
    pub(crate) async fn query(&self, access: Access, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.send(access, Request::Statement(sql, params)).await
    }

    /// Runs statements without parameters and results as one message, which is one transaction.
    pub(crate) async fn batch(&self, access: Access, sql: &str) -> Result<()> {
        self.send(access, Request::Batch(sql)).await.map(drop)
    }

    /// Repeats a request while it fails for a passing reason, if nothing was applied or twice is as good as once.
    async fn send(&self, access: Access, request: Request<'_>) -> Result<Vec<Row>> {
        let deadline = self.env.now() + self.config.timeout;
        let mut pause = Duration::from_millis(5);
        loop {
            let failure = match self.send_once(access, request, deadline).await {
                Ok(rows) => return Ok(rows),
                Err(failure) => failure,
            };
            let safe = access != Access::Write || failure.error.effect() == Effect::NotApplied;
            if !failure.passing || !safe || self.is_closed() || self.left(deadline) <= pause {
                return Err(failure.error);
            }
            tracing::debug!(engine = %self.config.description, error = %failure.error, "a request is repeated");
            self.env.sleep(pause / 2 + self.env.random_duration(pause / 2)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn send_once(&self, access: Access, request: Request<'_>, deadline: Instant) -> Result<Vec<Row>, Failure> {
        let connection = self.connection(deadline).await?;
        let answer = async {
            match request {
                Request::Statement(sql, params) => connection.inner().query_typed(sql, params).await,
                Request::Batch(sql) => connection.inner().batch_execute(sql).await.map(|()| Vec::new()),
            }
        };
        let answer = self.env.timeout(self.left(deadline), answer).await;
        self.answered(connection, answer, access)
    }

    fn answered<T>(
        &self,
        connection: Lent<'_>,
        answer: Option<Result<T, tokio_postgres::Error>>,
        access: Access,
    ) -> Result<T, Failure> {
        let failure = match answer {
            Some(Ok(rows)) => {
                connection.give_back();
                return Ok(rows);
            }
            Some(Err(error)) => Failure::of(&error, &self.config, access),
            None => Failure::timeout(&self.config, self.config.timeout, access),
        };
        if !failure.broken {
            connection.give_back();
        }
        Err(failure)
    }

    /// A connection of the pool.
    pub(crate) async fn connection(&self, deadline: Instant) -> Result<Lent<'_>, Failure> {
        match self.env.timeout(self.left(deadline), self.pool.get()).await {
            Some(Ok(connection)) => Ok(Lent { connection: Some(connection), owner: self }),
            Some(Err(PoolError::Backend(error))) => Err(Failure::connecting(&error, &self.config)),
            Some(Err(_)) if self.is_closed() => {
                Err(Failure { error: closed(&self.config.description), passing: false, broken: true })
            }
            Some(Err(_)) | None => Err(Failure::no_connection(&self.config, self.config.timeout)),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Lets go of every connection; requests under way finish.
    pub(crate) fn close(&self) {
        self.closed.store(true, Relaxed);
        self.pool.close();
    }

    fn left(&self, deadline: Instant) -> Duration {
        deadline.saturating_duration_since(self.env.now())
    }
}

impl Executor for Connections {
    async fn query(&self, access: Access, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.query(access, sql, params).await
    }
}

/// Somebody else's transaction: nothing is repeated, since the server has ended it with the first error.
pub(crate) struct Inside<'a> {
    pub(crate) transaction: &'a Transaction<'a>,
    pub(crate) config: &'a Config,
}

impl Executor for Inside<'_> {
    async fn query(&self, access: Access, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        let answer = self.transaction.query_typed(sql, params).await;
        answer.map_err(|error| Failure::of(&error, self.config, access).error)
    }
}

/// A connection of the pool. It goes back only when it was [given back](Self::give_back). One that was dropped in the
/// middle of a request is closed, and the server is asked to give the request up: it would not notice by itself while
/// it waits for a lock.
pub(crate) struct Lent<'a> {
    connection: Option<Object>,
    owner: &'a Connections,
}

impl Lent<'_> {
    pub(crate) fn inner(&self) -> &tokio_postgres::Client {
        self.connection.as_ref().expect("it is taken by those who consume this")
    }

    pub(crate) fn inner_mut(&mut self) -> &mut tokio_postgres::Client {
        self.connection.as_mut().expect("it is taken by those who consume this")
    }

    pub(crate) fn give_back(mut self) {
        self.connection = None;
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take().map(Object::take) else { return };
        // A future may be dropped after its runtime.
        if connection.is_closed() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (token, tls) = (connection.cancel_token(), self.owner.config.tls.clone());
        let (env, limit) = (self.owner.env.clone(), self.owner.config.connect_timeout);
        self.owner.env.spawn(async move {
            // What fails here ends with the server, or is done already.
            let _ = env.timeout(limit, token.cancel_query(tls)).await;
        });
    }
}
