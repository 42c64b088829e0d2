//! What is answered: the records for a question.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use coact_blocks::directory::{Seen, Snapshot, State};
use coact_core::{Result, env::Env};
use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, HINFO, SOA, SRV},
    },
};
use sha2::{Digest as _, Sha256};
use tracing::debug;

use super::{
    name::{self, Ask, Which},
    services::{Found, Services},
};

/// The most bytes of a label.
const LABEL_BYTES_MAX: usize = 63;

/// The records of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Answer {
    pub(super) fn of(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authorities: Vec::new(), additionals: Vec::new() }
    }
}

/// The domain that we answer for.
#[derive(Debug)]
pub(super) struct Zone {
    domain: Name,
    ttl: u32,
}

impl Zone {
    pub(super) fn new(domain: Name, ttl: Duration) -> Self {
        Self { domain, ttl: ttl.as_secs() as u32 }
    }

    /// Answers a question.
    pub(super) async fn answer(&self, query: &Query, services: &Services, env: &Env) -> Answer {
        let is_internet = matches!(query.query_class(), DNSClass::IN | DNSClass::ANY);
        if !is_internet || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            return Answer::of(ResponseCode::Refused);
        }
        match name::read(query.name(), &self.domain) {
            Ask::Outside => Answer::of(ResponseCode::Refused),
            Ask::Nothing => self.negative(ResponseCode::NXDomain),
            Ask::Branch => self.negative(ResponseCode::NoError),
            Ask::Apex => self.apex(query),
            Ask::Service { service, which } => match services.find(&service).await {
                Ok(Found::Service(snapshot)) => self.instances(query, &snapshot, &which, env),
                Ok(Found::Branch) if which == Which::All => self.negative(ResponseCode::NoError),
                Ok(_) => self.negative(ResponseCode::NXDomain),
                Err(error) => {
                    debug!(service, %error, "a question about a service cannot be answered");
                    Answer::of(ResponseCode::ServFail)
                }
            },
        }
    }

    fn apex(&self, query: &Query) -> Answer {
        match query.query_type() {
            RecordType::SOA | RecordType::ANY => {
                Answer { answers: self.soa().into_iter().collect(), ..Answer::of(ResponseCode::NoError) }
            }
            _ => self.negative(ResponseCode::NoError),
        }
    }

    fn instances(&self, query: &Query, snapshot: &Snapshot, which: &Which, env: &Env) -> Answer {
        let mut exists = matches!(which, Which::All | Which::Srv | Which::Beneath);
        let mut chosen: Vec<&Seen> = Vec::new();
        for seen in snapshot.instances.iter() {
            if is_asked_for(seen, which) {
                exists = true;
                if is_eligible(seen, snapshot) {
                    chosen.push(seen);
                }
            }
        }
        if !exists {
            return self.negative(ResponseCode::NXDomain);
        }
        shuffle(&mut chosen, env);
        let records = match query.query_type() {
            RecordType::SRV => self.services(query.name(), &chosen),
            _ if *which == Which::Srv => Ok((Vec::new(), Vec::new())),
            RecordType::ANY => Ok((self.minimal(query.name(), &chosen), Vec::new())),
            kind => Ok((self.addresses(query.name(), kind, &chosen), Vec::new())),
        };
        match records {
            Ok((answers, _)) if answers.is_empty() => self.negative(ResponseCode::NoError),
            Ok((answers, additionals)) => Answer { answers, additionals, ..Answer::of(ResponseCode::NoError) },
            Err(error) => {
                debug!(service = snapshot.service, %error, "the names of a service do not fit into DNS");
                Answer::of(ResponseCode::ServFail)
            }
        }
    }

    /// A or AAAA of the IP addresses, each once; or the one host name.
    fn addresses(&self, owner: &Name, kind: RecordType, chosen: &[&Seen]) -> Vec<Record> {
        if let [only] = chosen
            && matches!(kind, RecordType::A | RecordType::AAAA | RecordType::CNAME)
            && let Some(host) = host_name(only)
        {
            return vec![self.record(owner, RData::CNAME(CNAME(host)))];
        }
        let mut told = HashSet::new();
        let addresses = chosen.iter().filter_map(|seen| ip(seen)).filter(|ip| told.insert(*ip));
        addresses.map(|ip| self.record(owner, data_of(ip))).filter(|record| record.record_type() == kind).collect()
    }

    /// SRV of every instance, and beside them the addresses of the targets.
    fn services(&self, owner: &Name, chosen: &[&Seen]) -> Result<(Vec<Record>, Vec<Record>)> {
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        for seen in chosen {
            let target = match host_name(seen) {
                Some(host) => host,
                None => self.name_of(seen)?,
            };
            if let Some(ip) = ip(seen) {
                additionals.push(self.record(&target, data_of(ip)));
            }
            let instance = &seen.instance;
            let weight = u16::try_from(instance.weight).unwrap_or(u16::MAX);
            answers.push(self.record(owner, RData::SRV(SRV::new(0, weight, instance.port, target))));
        }
        Ok((answers, additionals))
    }

    /// What RFC 8482 gives to those who ask for everything.
    fn minimal(&self, owner: &Name, chosen: &[&Seen]) -> Vec<Record> {
        if chosen.is_empty() {
            return Vec::new();
        }
        vec![self.record(owner, RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())))]
    }

    /// The name that one instance has: `a1.instance.web.eu.service.coact.`
    fn name_of(&self, seen: &Seen) -> Result<Name> {
        let label = label_of(&seen.instance.id);
        let segments = seen.instance.service.rsplit('/');
        let labels = [label.as_str(), "instance"].into_iter().chain(segments).chain(["service"]);
        let name = Name::from_labels(labels.map(str::as_bytes)).and_then(|name| name.append_name(&self.domain));
        name.map_err(|error| coact_core::Error::invalid("a name is too long for DNS").with_source(error))
    }

    fn negative(&self, code: ResponseCode) -> Answer {
        Answer { authorities: self.soa().into_iter().collect(), ..Answer::of(code) }
    }

    /// Who is responsible, and for how long a "no" may be kept.
    fn soa(&self) -> Option<Record> {
        let server = self.domain.prepend_label("ns").ok()?;
        let person = self.domain.prepend_label("hostmaster").ok()?;
        let soa = SOA::new(server, person, 1, 3_600, 600, 86_400, self.ttl);
        Some(self.record(&self.domain, RData::SOA(soa)))
    }

    fn record(&self, owner: &Name, data: RData) -> Record {
        Record::from_rdata(owner.clone(), self.ttl, data)
    }
}

fn is_asked_for(seen: &Seen, which: &Which) -> bool {
    match which {
        Which::All | Which::Srv => true,
        Which::Tag(tag) => seen.instance.tags.contains(tag),
        Which::Instance(label) => label_of(&seen.instance.id) == *label,
        Which::Beneath => false,
    }
}

/// Whether an instance should get traffic, as far as we know. One that is held vanished together with too many others
/// to be believed: it is the last that was good.
fn is_eligible(seen: &Seen, snapshot: &Snapshot) -> bool {
    let is_doubted = seen.held && matches!(snapshot.state, State::Degraded { .. } | State::Stale { .. });
    seen.is_healthy() || (is_doubted && !seen.draining && seen.instance.weight > 0)
}

/// Puts instances into a random order in which an instance comes first as often as its weight says.
fn shuffle(chosen: &mut [&Seen], env: &Env) {
    let uniform = || (env.random() as f64 / u64::MAX as f64).max(f64::MIN_POSITIVE);
    let mut drawn: Vec<(f64, &Seen)> =
        chosen.iter().map(|seen| (-uniform().ln() / f64::from(seen.instance.weight), *seen)).collect();
    drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (place, (_, seen)) in chosen.iter_mut().zip(drawn) {
        *place = seen;
    }
}

/// The label of an instance: its id if that can be one, and otherwise one that is made of it.
fn label_of(id: &str) -> String {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if id.len() <= LABEL_BYTES_MAX && id.bytes().all(is_allowed) {
        return id.to_ascii_lowercase();
    }
    let digest = Sha256::digest(id.as_bytes());
    let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("id--{hex}")
}

fn ip(seen: &Seen) -> Option<IpAddr> {
    seen.instance.address.parse().ok()
}

fn host_name(seen: &Seen) -> Option<Name> {
    if ip(seen).is_some() {
        return None;
    }
    let mut host = Name::from_ascii(&seen.instance.address).ok()?;
    host.set_fqdn(true);
    Some(host)
}

fn data_of(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

#[cfg(test)]
mod tests {
    use coact_blocks::directory::{Health, Instance};

    use super::*;

    fn seen(id: &str, weight: u32) -> Seen {
        let mut instance = Instance::new("web", "10.0.0.1", 80);
        (instance.id, instance.weight) = (id.to_owned(), weight);
        Seen { instance, created: Default::default(), health: Health::Unchecked, draining: false, held: false }
    }

    #[test]
    fn heavier_instances_come_first_more_often() {
        let (light, heavy) = (seen("light", 1), seen("heavy", 9));
        let mut first = 0;
        for _ in 0..10_000 {
            let mut chosen = [&light, &heavy];
            shuffle(&mut chosen, &Env::real());
            first += usize::from(chosen[0].instance.id == "heavy");
        }
        // 9 in 10, with a spread of 30.
        assert!((8_800..9_200).contains(&first), "{first}");
    }

    #[test]
    fn every_id_has_a_label_of_its_own() {
        assert_eq!(label_of("A1-b_c"), "a1-b_c");
        let odd = label_of("10.0.0.1:80");
        assert!(odd.starts_with("id--") && odd.len() == 20, "{odd}");
        assert_ne!(odd, label_of("10.0.0.1:81"));
        assert_eq!(label_of(&"x".repeat(64)).len(), 20);
    }
}
