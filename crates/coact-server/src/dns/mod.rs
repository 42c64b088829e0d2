//! DNS: the instances of services for whatever only speaks DNS, over UDP and TCP on one address.
//!
//! | name | type | answer |
//! |---|---|---|
//! | `web.service.coact.` | A, AAAA, SRV | the instances of `web` |
//! | `web.eu.service.coact.` | A, AAAA, SRV | those of `eu/web`: segments become labels, the last one first |
//! | `blue._tag.web.service.coact.` | A, AAAA, SRV | those with the tag `blue` |
//! | `_web._tcp.service.coact.` | SRV | the instances, as RFC 2782 writes it; `_web._tcp.eu.service.coact.` for `eu/web` |
//! | `a1.instance.web.service.coact.` | A, AAAA, SRV | the instance `a1`; an id that is no label gets another, which SRV tells |
//!
//! DNS does not tell upper case from lower case, so a service is found only if its name, and a tag only if what is asked,
//! is written in lower case; and `instance`, `_tag` and `_tcp` in the second place of a name mean what the table says.
//!
//! An answer has the instances that should get traffic ([`Seen::is_healthy`](coact_blocks::directory::Seen::is_healthy)),
//! in an order drawn anew each time, in which heavier ones tend to come first. While the directory doubts that so many
//! vanished at once ([degraded](coact_blocks::directory::State::Degraded)), those are in the answer too: a name server
//! that answers with nobody is believed for longer than the doubt lasts. A host name instead of an IP address is told as
//! the target of SRV, and as a CNAME if it is the only instance; a resolver in between that keeps CNAMEs then asks that
//! host for SRV too, unless it is asked for `_web._tcp`.
//!
//! What must never be: recursion; an answer beyond the client's size (it is cut, and says so: TCP has all of it); a watch
//! or memory for a name that nobody registered.

mod answer;
mod message;
mod name;
mod port;
mod services;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use coact_blocks::directory::{Directory, DirectoryOptions};
use coact_core::{
    Error, ErrorKind, Result,
    contract::kv::KvHandle,
    name::{Namespace, Realm},
};
use hickory_proto::rr::Name;

pub(crate) use port::Listeners;
use port::Port;
use services::Services;

use crate::{auth::RESERVED_NAMESPACE, lifecycle::Signal, metrics::SharedMetrics};

/// The port that DNS is usually tried out on; 53 needs a privilege.
pub const DEFAULT_DNS_PORT: u16 = 7053;

/// The longest that an answer may be kept.
const TTL_MAX: Duration = Duration::from_secs(5);

/// How a node answers DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Where it listens, over UDP and TCP. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The domain that all names end with; `coact.` by default.
    pub domain: String,
    /// The namespace whose services it shows.
    pub namespace: Namespace,
    /// The realm in it.
    pub realm: Realm,
    /// How long an answer may be kept by who asked; 5 s by default and at most, whole seconds.
    pub ttl: Duration,
    /// Whether `listen` may be beyond loopback. DNS has neither TLS nor tokens: whoever reaches the address then learns
    /// where the services of the namespace are.
    pub open: bool,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_DNS_PORT)),
            domain: "coact.".to_owned(),
            namespace: Namespace::default(),
            realm: Realm::default(),
            ttl: TTL_MAX,
            open: false,
        }
    }
}

impl DnsConfig {
    /// Checks everything that can be wrong before anything is opened.
    pub(crate) fn check(&self) -> Result<()> {
        self.parsed_domain()?;
        if self.ttl > TTL_MAX {
            return Err(Error::invalid(format!("dns.ttl {:?} is not allowed: use 0 s to {TTL_MAX:?}", self.ttl)));
        }
        if self.namespace.as_str() == RESERVED_NAMESPACE {
            return Err(Error::new(ErrorKind::Denied, format!("namespace {} is the node's own", self.namespace)));
        }
        let listen = self.listen;
        if self.open || listen.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Denied,
            format!(
                "answering DNS on {listen} is refused: DNS has neither TLS nor tokens, so all that can reach it would learn \
                 where the services of namespace {} are; ask for it with dns.open = true, or listen on 127.0.0.1:{}",
                self.namespace,
                listen.port()
            ),
        ))
    }

    fn parsed_domain(&self) -> Result<Name> {
        let parsed = Name::from_ascii(&self.domain).ok().filter(|name| !name.is_root());
        let Some(mut name) = parsed.filter(|name| name.len() <= DOMAIN_BYTES_MAX) else {
            return Err(Error::invalid(format!(
                "dns.domain {:?} is not allowed: use a domain of at most {DOMAIN_BYTES_MAX} bytes, as coact.",
                self.domain
            )));
        };
        name.set_fqdn(true);
        Ok(name.to_lowercase())
    }
}

/// What is left of the 255 bytes of a name is for the service and the instance.
const DOMAIN_BYTES_MAX: usize = 60;

/// Answers on these sockets until the shutdown begins.
pub(crate) fn serve(
    config: &DnsConfig,
    kv: &KvHandle,
    listeners: Listeners,
    signal: Signal,
    metrics: SharedMetrics,
) -> Result<()> {
    let options = DirectoryOptions { realm: config.realm.clone(), ..DirectoryOptions::default() };
    let services = Services::new(Directory::open(kv, options)?);
    let zone = answer::Zone::new(config.parsed_domain()?, config.ttl);
    Port::new(kv.env().clone(), services, zone, signal, metrics).serve(listeners);
    Ok(())
}
