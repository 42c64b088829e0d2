//! Finding the one server that takes our writes: one server, the primary that Sentinels name, or the owner of our slot.

use std::sync::Arc;

use coact_core::{Error, ErrorKind, Result, env::Env};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo, RedisConnectionInfo,
    RedisError, Value, aio::MultiplexedConnection, cmd, io::tcp::TcpSettings,
};

use crate::{
    config::{Address, Config, Login},
    errors::final_refusal,
    probe::Info,
};

/// Takes what a server sends without being asked.
pub(crate) type OnPush = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// The server that takes our writes.
pub(crate) struct Primary {
    pub(crate) connection: MultiplexedConnection,
    pub(crate) info: Info,
}

/// Why no primary was found.
pub(crate) enum NotFound {
    /// Nobody will say otherwise.
    Final(Error),
    /// It may be there in a moment.
    Yet(Error),
}

impl From<Error> for NotFound {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Asks every server once.
pub(crate) async fn locate(config: &Config, env: &Env, on_push: OnPush) -> Result<Primary, NotFound> {
    let mut complaints = Vec::new();
    for host in &config.hosts {
        let found = match &config.sentinel {
            Some(name) => by_sentinel(config, env, host, name, &on_push).await,
            None => by_server(config, env, host, &on_push).await,
        };
        match found {
            Ok(primary) => return Ok(primary),
            Err(NotFound::Final(error)) => return Err(NotFound::Final(error)),
            Err(NotFound::Yet(error)) => complaints.push(error.to_string()),
        }
    }
    let text = format!("no Redis primary answers: {}", complaints.join("; "));
    Err(NotFound::Yet(Error::new(ErrorKind::Unavailable, text)))
}

async fn by_server(config: &Config, env: &Env, host: &Address, on_push: &OnPush) -> Result<Primary, NotFound> {
    let mut found = open(config, env, host, &config.login, on_push).await?;
    if found.info.is_sentinel() {
        return Err(NotFound::Final(Error::invalid(format!(
            "{}:{} is a Sentinel: add sentinel=NAME, the name that it knows the primary by",
            host.0, host.1
        ))));
    }
    if found.info.is_cluster() {
        let owner = owner(config, &mut found.connection, host).await.map_err(|error| yet(host, &error))?;
        if owner != *host {
            found = open(config, env, &owner, &config.login, on_push).await?;
        }
    }
    primary(found, host)
}

/// Who has the slot of our namespace.
async fn owner(
    config: &Config,
    connection: &mut MultiplexedConnection,
    asked: &Address,
) -> Result<Address, RedisError> {
    let slot: i64 = cmd("CLUSTER").arg("KEYSLOT").arg(config.root()).query_async(connection).await?;
    let ranges: Vec<Vec<Value>> = cmd("CLUSTER").arg("SLOTS").query_async(connection).await?;
    for range in ranges {
        let [Value::Int(first), Value::Int(last), Value::Array(owner), ..] = range.as_slice() else { continue };
        if (*first..=*last).contains(&slot) {
            let [host, Value::Int(port), ..] = owner.as_slice() else { continue };
            let host = match host {
                Value::BulkString(name) if !name.is_empty() => String::from_utf8_lossy(name).into_owned(),
                // The server does not know its own address.
                _ => asked.0.clone(),
            };
            return Ok((host, u16::try_from(*port).unwrap_or(asked.1)));
        }
    }
    Err((redis::ErrorKind::ClusterConnectionNotFound, "no server of the Cluster has the namespace's slot").into())
}

async fn by_sentinel(
    config: &Config,
    env: &Env,
    sentinel: &Address,
    name: &str,
    on_push: &OnPush,
) -> Result<Primary, NotFound> {
    let nobody: OnPush = Arc::new(|_| ());
    let mut asked = open(config, env, sentinel, &config.sentinel_login, &nobody).await?;
    if !asked.info.is_sentinel() {
        return Err(NotFound::Final(Error::invalid(format!(
            "{}:{} is no Sentinel: leave sentinel={name} out, or name the Sentinels",
            sentinel.0, sentinel.1
        ))));
    }
    let mut question = cmd("SENTINEL");
    question.arg("get-master-addr-by-name").arg(name);
    let answer: Option<Address> =
        question.query_async(&mut asked.connection).await.map_err(|error| yet(sentinel, &error))?;
    let Some(address) = answer else {
        return Err(NotFound::Final(Error::invalid(format!(
            "the Sentinel {}:{} knows no primary named {name:?}: look at `SENTINEL masters`",
            sentinel.0, sentinel.1
        ))));
    };
    primary(open(config, env, &address, &config.login, on_push).await?, &address)
}

fn primary(found: Primary, host: &Address) -> Result<Primary, NotFound> {
    if found.info.is_primary() {
        return Ok(found);
    }
    let master = format!("{}:{}", found.info.get("master_host"), found.info.get("master_port"));
    let text = format!("{}:{} is a replica of {master}", host.0, host.1);
    Err(NotFound::Yet(Error::new(ErrorKind::Unavailable, text)))
}

async fn open(
    config: &Config,
    env: &Env,
    address: &Address,
    login: &Login,
    on_push: &OnPush,
) -> Result<Primary, NotFound> {
    let client = client(config, address, login)?;
    let on_push = on_push.clone();
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.connect_timeout))
        .set_response_timeout(None)
        .set_push_sender(move |push| {
            on_push(push);
            Ok::<_, std::convert::Infallible>(())
        });
    let opening = async {
        let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
        let info: String = cmd("INFO").query_async(&mut connection).await?;
        Ok((connection, Info::parse(&info)))
    };
    match env.timeout(config.connect_timeout, opening).await {
        Some(Ok((connection, info))) => Ok(Primary { connection, info }),
        Some(Err(error)) => Err(final_refusal(&error).map_or_else(|| yet(address, &error), NotFound::Final)),
        None => {
            let text = format!("{}:{} did not answer within {:?}", address.0, address.1, config.connect_timeout);
            Err(NotFound::Yet(Error::new(ErrorKind::Unavailable, text)))
        }
    }
}

fn client(config: &Config, address: &Address, login: &Login) -> Result<Client, NotFound> {
    let (host, port) = address.clone();
    let address = match &config.tls {
        Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        None => ConnectionAddr::Tcp(host, port),
    };
    let mut redis = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
    if let Some(user) = &login.user {
        redis = redis.set_username(user);
    }
    if let Some(password) = &login.password {
        redis = redis.set_password(password.expose()?);
    }
    let invalid = |error: RedisError| Error::invalid("Redis's client does not take these settings").with_source(error);
    let info = address
        .into_connection_info()
        .map_err(invalid)?
        .set_redis_settings(redis)
        .set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let client = match &config.tls {
        Some(certificates) => {
            // Two crates of a program may bring two providers; whoever is first decides.
            let _ = rustls::crypto::ring::default_provider().install_default();
            Client::build_with_tls(info, certificates.clone())
        }
        None => Client::open(info),
    };
    Ok(client.map_err(invalid)?)
}

fn yet(host: &Address, error: &RedisError) -> NotFound {
    NotFound::Yet(Error::new(ErrorKind::Unavailable, format!("{}:{}: {error}", host.0, host.1)))
}
