//! The connection that listens: `NOTIFY` says that a realm has changed, and the table `change` says how.
//!
//! A hint that is lost costs time, not truth: watches also look by themselves now and then.

use std::{future::poll_fn, sync::Arc, time::Duration};

use coact_core::{
    Error, ErrorKind, Result,
    env::Env,
    name::{Namespace, Realm},
};
use tokio::sync::{mpsc, watch};
use tokio_postgres::{AsyncMessage, Client};

use crate::{
    config::Config,
    connection::{Connections, first_host},
    errors::{Access, Failure},
    watch::Hints,
};

/// How long an own notification may take to come back before it is clear that none will.
const ECHO: Duration = Duration::from_secs(1);
/// The longest pause between attempts to listen again.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// What PostgreSQL allows for the name of a channel.
const CHANNEL_BYTES_MAX: usize = 63;

/// A connection that hears what is said on the channel of a namespace.
pub(crate) struct Listener {
    /// Dropped with the listener, which ends the connection.
    _client: Client,
    heard: mpsc::UnboundedReceiver<String>,
}

/// The channel on which changes of a namespace are told.
pub(crate) fn channel(schema: &str, namespace: &Namespace) -> String {
    let plain = format!("{schema}:{namespace}");
    if plain.len() <= CHANNEL_BYTES_MAX {
        return plain;
    }
    // FNV-1a. Two namespaces on one channel would only wake each other for nothing.
    let hash = plain
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{schema}:{hash:016x}")
}

/// Listens, and says something itself to learn whether it is heard; `None` if not: there is a pooler in between that
/// gives each transaction another session.
pub(crate) async fn start(connections: &Connections) -> Result<Option<Listener>> {
    let (config, env) = (&connections.config, &connections.env);
    let mut listener = connect(config, env).await?;
    let token = format!("?{:016x}", env.random());
    connections.batch(Access::Idempotent, &format!("SELECT pg_notify('{}', '{token}')", channel_of(config))).await?;
    let echo = async {
        while let Some(heard) = listener.heard.recv().await {
            if heard == token {
                return true;
            }
        }
        false
    };
    if env.timeout(ECHO, echo).await == Some(true) {
        return Ok(Some(listener));
    }
    // The session that listens now belongs to the pooler; this reaches it unless somebody else was quicker.
    let silence = format!("UNLISTEN \"{}\"", channel_of(config));
    let _ = env.timeout(ECHO, listener._client.batch_execute(&silence)).await;
    Ok(None)
}

/// Passes on what is heard until the handle goes away, and listens again when the connection breaks.
pub(crate) async fn run(
    mut listener: Listener,
    connections: Arc<Connections>,
    hints: Hints,
    mut alive: watch::Receiver<()>,
) {
    loop {
        tokio::select! {
            biased;
            _ = alive.changed() => return,
            heard = listener.heard.recv() => match heard {
                Some(heard) => {
                    if let Ok(realm) = Realm::new(&heard) {
                        hints.changed(Some(&realm));
                    }
                }
                None => {
                    tokio::select! {
                        biased;
                        _ = alive.changed() => return,
                        again = reconnect(&connections) => listener = again,
                    }
                    // What was said meanwhile is lost.
                    hints.changed(None);
                }
            },
        }
    }
}

async fn reconnect(connections: &Connections) -> Listener {
    let mut pause = Duration::from_millis(20);
    loop {
        match connect(&connections.config, &connections.env).await {
            Ok(listener) => return listener,
            Err(error) => {
                tracing::debug!(engine = %connections.config.description, %error, "listening again failed");
            }
        }
        connections.env.sleep(pause / 2 + connections.env.random_duration(pause / 2)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn connect(config: &Config, env: &Env) -> Result<Listener> {
    let connecting = async {
        let connected = first_host(config, env, |host| {
            let tls = config.tls.clone();
            Box::pin(async move { host.connect(tls).await })
        })
        .await;
        let (client, mut connection) = connected.map_err(|error| Failure::connecting(&error, config).error)?;
        let (told, heard) = mpsc::unbounded_channel();
        env.spawn(async move {
            // Ends with the client, or when the connection breaks; either ends the queue.
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(notification) = message
                    && told.send(notification.payload().to_owned()).is_err()
                {
                    return;
                }
            }
        });
        let listen = format!("LISTEN \"{}\"", channel_of(config));
        client.batch_execute(&listen).await.map_err(|error| Failure::of(&error, config, Access::Read).error)?;
        Ok::<_, Error>(Listener { _client: client, heard })
    };
    match env.timeout(config.timeout, connecting).await {
        Some(listener) => listener,
        None => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{} does not answer within {:?}", crate::errors::peer(config), config.timeout),
        )),
    }
}

fn channel_of(config: &Config) -> String {
    channel(&config.schema, &config.namespace)
}

/// Tells other processes which realms changed.
///
/// Not inside the transaction that changed something: a `NOTIFY` makes commits queue for one lock of the whole server,
/// and a durable commit would hold it during its sync. Here it is a transaction of its own that waits for no sync, at
/// most one at a time for each handle, for all the realms that changed meanwhile.
pub(crate) async fn tell(connections: Arc<Connections>, mut changed: mpsc::UnboundedReceiver<Realm>) {
    let channel = channel_of(&connections.config);
    while let Some(realm) = changed.recv().await {
        let mut realms = vec![realm];
        while let Ok(realm) = changed.try_recv() {
            realms.push(realm);
        }
        realms.sort();
        realms.dedup();
        let names: Vec<_> = realms.iter().map(|realm| format!("'{realm}'")).collect();
        // Words, which need no escapes. Several statements in one message are one transaction.
        let sql = format!(
            "SET LOCAL synchronous_commit TO off; SELECT pg_notify('{channel}', realm) FROM unnest(ARRAY[{}]) realm",
            names.join(", ")
        );
        if let Err(error) = connections.batch(Access::Idempotent, &sql).await {
            tracing::debug!(engine = %connections.config.description, %error, "others were not told of a change; they will look");
        }
        if connections.is_closed() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_fit_and_differ() {
        let of = |namespace: &str| channel("coact", &Namespace::new(namespace).expect("valid"));
        assert_eq!(of("shop"), "coact:shop");
        let (a, b) = (of(&"x".repeat(64)), of(&format!("{}y", "x".repeat(63))));
        assert!(a.len() <= CHANNEL_BYTES_MAX && b.len() <= CHANNEL_BYTES_MAX && a != b);
    }
}
