//! One try of each kind.

use std::{collections::BTreeMap, net::SocketAddr, ops::RangeInclusive, process::Stdio};

use axum::{
    body::{Body, HttpBody},
    http::{Request, Uri, header},
};
use coact_blocks::directory::{CheckKind, Instance};
use coact_core::env::Env;
use futures::future::poll_fn;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::{TcpStream, lookup_host};
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::policy::{self, Prefix};
use crate::http::Spawn;

/// The most bytes that are read of an answer.
const ANSWER_BYTES: usize = 64 * 1024;
/// Which answers are good if the check does not say.
const GOOD: RangeInclusive<u16> = 200..=299;

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// It does not work, for people.
    Failed(String),
    /// It did not answer in time.
    TimedOut(String),
    /// It was not tried, since this node does not do that.
    Refused(String),
}

impl Outcome {
    /// The name, as in metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::TimedOut(_) => "timed-out",
            Self::Refused(_) => "refused",
        }
    }

    /// Why it is not good, if so.
    pub(super) fn failure(self) -> Option<String> {
        match self {
            Self::Passed => None,
            Self::Failed(why) | Self::TimedOut(why) | Self::Refused(why) => Some(why),
        }
    }
}

/// What is not good ends a try early.
type Tried<T = ()> = Result<T, Outcome>;

pub(super) struct Prober {
    env: Env,
    allow: Vec<Prefix>,
    commands: BTreeMap<String, Vec<String>>,
}

impl Prober {
    pub(super) fn new(env: Env, allow: Vec<Prefix>, commands: BTreeMap<String, Vec<String>>) -> Self {
        Self { env, allow, commands }
    }

    /// Tries once. What it started ends when it is dropped.
    pub(super) async fn probe(&self, instance: &Instance, kind: &CheckKind) -> Outcome {
        let tried = match kind {
            CheckKind::Tcp => self.connect(instance).await.map(drop),
            CheckKind::Http { path, expect_status } => {
                self.http(instance, path, expect_status.as_ref().unwrap_or(&GOOD)).await
            }
            CheckKind::Grpc { service } => self.grpc(instance, service).await,
            CheckKind::Command { name } => self.command(instance, name).await,
        };
        tried.err().unwrap_or(Outcome::Passed)
    }

    /// Connects to the first address that takes it, of those that may be connected to.
    async fn connect(&self, instance: &Instance) -> Tried<(TcpStream, SocketAddr)> {
        let (host, port) = (instance.address.as_str(), instance.port);
        let resolved = lookup_host((host, port)).await.map_err(|error| failed(&format!("resolving {host}"), &error))?;
        let mut why = Outcome::Failed(format!("{host} has no address"));
        for address in resolved {
            // Decided on the address itself: a name may resolve to something else the next time.
            if let Some(refusal) = policy::refusal(address.ip(), &self.allow) {
                why = Outcome::Refused(refusal);
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok((stream, address)),
                Err(error) => why = failed(&format!("connecting to {address}"), &error),
            }
        }
        Err(why)
    }

    async fn http(&self, instance: &Instance, path: &str, expected: &RangeInclusive<u16>) -> Tried {
        let (stream, address) = self.connect(instance).await?;
        let what = format!("GET http://{address}{path}");
        let request = Request::get(path)
            .header(header::HOST, address.to_string())
            .header(header::USER_AGENT, "coact-check")
            .header(header::CONNECTION, "close")
            .body(Body::empty())
            .map_err(|error| failed(&what, &error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&what, &error))?;
        let asked = async {
            let response = sender.send_request(request).await.map_err(|error| failed(&what, &error))?;
            let status = response.status().as_u16();
            if !expected.contains(&status) {
                let (from, to) = (expected.start(), expected.end());
                return Err(Outcome::Failed(format!("{what}: status {status}, expected {from} to {to}")));
            }
            read_some(response.into_body()).await.map_err(|error| failed(&what, &error))
        };
        tokio::select! {
            biased;
            tried = asked => tried,
            // It ends before the answer only if it failed; the answer then says why.
            tried = async { let _ = connection.await; std::future::pending().await } => tried,
        }
    }

    async fn grpc(&self, instance: &Instance, service: &str) -> Tried {
        let (stream, address) = self.connect(instance).await?;
        let what = format!("grpc.health.v1.Health/Check at {address}");
        let mut stream = Some(stream);
        let connector = service_fn(move |_: Uri| {
            let stream = stream.take().ok_or_else(|| std::io::Error::other("the connection was lost"));
            std::future::ready(stream.map(TokioIo::new))
        });
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| failed(&what, &error))?;
        let endpoint = endpoint.executor(Spawn(self.env.clone()));
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| failed(&what, &error))?;
        let status = ask_health(channel, service).await;
        match status {
            Ok(SERVING) => Ok(()),
            Ok(status) => Err(Outcome::Failed(format!("{what}: {}", status_name(status)))),
            Err(status) => Err(Outcome::Failed(format!("{what}: {:?}: {}", status.code(), status.message()))),
        }
    }

    /// Runs what the node's configuration has under this name. The instance is told in the environment, so that no text
    /// of a registration becomes an argument.
    async fn command(&self, instance: &Instance, name: &str) -> Tried {
        let Some((program, arguments)) = self.commands.get(name).and_then(|argv| argv.split_first()) else {
            return Err(Outcome::Refused(format!("the checking node has no command {name:?} in its configuration")));
        };
        let child = tokio::process::Command::new(program)
            .args(arguments)
            .env("COACT_SERVICE", &instance.service)
            .env("COACT_INSTANCE", &instance.id)
            .env("COACT_ADDRESS", &instance.address)
            .env("COACT_PORT", instance.port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child = child.map_err(|error| failed(&format!("starting command {name}"), &error))?;
        let group = Group::of(&child);
        let ended = child.wait().await.map_err(|error| failed(&format!("command {name}"), &error))?;
        group.forget();
        if ended.success() { Ok(()) } else { Err(Outcome::Failed(format!("command {name} ended with {ended}"))) }
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> Outcome {
    let mut why = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        why.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Outcome::Failed(why)
}

/// Reads a body up to its end or the limit: whoever sends more has answered.
async fn read_some(body: impl HttpBody<Data: AsRef<[u8]>, Error = hyper::Error>) -> hyper::Result<()> {
    let mut body = std::pin::pin!(body);
    let mut read = 0;
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        read += frame?.data_ref().map_or(0, |data| data.as_ref().len());
        if read > ANSWER_BYTES {
            break;
        }
    }
    Ok(())
}

async fn ask_health(channel: Channel, service: &str) -> Result<i32, tonic::Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    Ok(client.unary(request, path, codec).await?.into_inner().status)
}

/// The question of gRPC's health protocol.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// Its answer.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

fn status_name(status: i32) -> &'static str {
    match status {
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

/// The processes that a command started; killed when this is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)))
    }

    /// The command has ended: its number may belong to others by now.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It fails if nothing is left of it.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
