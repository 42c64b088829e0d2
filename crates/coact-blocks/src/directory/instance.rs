//! What is registered: where an instance is, how much traffic it takes, and how to check it.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive, time::Duration};

use coact_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::names;

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its name within the service, 1 to 100 bytes without a slash; empty to get a random one at registration.
    pub id: String,
    /// The service: 1 to 100 bytes, segments joined by `/`.
    pub service: String,
    /// Where it runs, for [`Picker`](super::Picker)s that stay near; empty if that does not matter.
    #[serde(default)]
    pub zone: String,
    /// A host name or an IP address.
    pub address: String,
    /// The port.
    pub port: u16,
    /// How much traffic it takes compared with others, up to [`WEIGHT_MAX`]; 100 by default, 0 for none.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Words to filter by, at most 64.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Anything else, at most 64 pairs.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// How a node finds out whether it works; not at all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
}

/// The most that an instance can weigh.
pub const WEIGHT_MAX: u32 = 1_000;

impl Instance {
    /// An instance with a random id, the default weight and nothing else.
    pub fn new(service: impl Into<String>, address: impl Into<String>, port: u16) -> Self {
        Self {
            id: String::new(),
            service: service.into(),
            zone: String::new(),
            address: address.into(),
            port,
            weight: default_weight(),
            tags: Vec::new(),
            metadata: BTreeMap::new(),
            check: None,
        }
    }

    /// Checks everything but the id, which may still be missing.
    ///
    /// # Errors
    /// `Invalid`, naming the field and its rule.
    pub fn validate(&self) -> Result<()> {
        names::check_service(&self.service)?;
        if !self.id.is_empty() {
            names::check_id(&self.id)?;
        }
        check_text("zone", &self.zone, 0, 64)?;
        check_address(&self.address)?;
        if self.port == 0 {
            return Err(Error::invalid("port 0 is not allowed: use 1 to 65535"));
        }
        if self.weight > WEIGHT_MAX {
            return Err(Error::invalid(format!("weight {} is not allowed: use 0 to {WEIGHT_MAX}", self.weight)));
        }
        self.check_attributes()?;
        self.check.as_ref().map_or(Ok(()), Check::validate)
    }

    fn check_attributes(&self) -> Result<()> {
        if self.tags.len() > ATTRIBUTES_MAX {
            return Err(Error::invalid(format!(
                "the instance has {} tags: at most {ATTRIBUTES_MAX} are allowed",
                self.tags.len()
            )));
        }
        if self.metadata.len() > ATTRIBUTES_MAX {
            return Err(Error::invalid(format!(
                "the metadata has {} pairs: at most {ATTRIBUTES_MAX} are allowed",
                self.metadata.len()
            )));
        }
        for tag in &self.tags {
            check_text("tag", tag, 1, 128)?;
        }
        for key in self.metadata.keys() {
            check_text("metadata key", key, 1, 128)?;
        }
        let of_pairs: usize = self.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        let bytes = of_pairs + self.tags.iter().map(String::len).sum::<usize>();
        if bytes > ATTRIBUTE_BYTES_MAX {
            return Err(Error::invalid(format!(
                "tags and metadata have {bytes} bytes: at most {ATTRIBUTE_BYTES_MAX} are allowed"
            )));
        }
        Ok(())
    }
}

/// How a node checks an instance. It is data only: nodes run the checks and [report](super::Directory::report_health).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is tried.
    #[serde(flatten)]
    pub kind: CheckKind,
    /// How often; 10 s by default.
    #[serde(default = "default_interval", with = "millis", rename = "interval_ms")]
    pub interval: Duration,
    /// How long one try may take, at most the interval; 2 s by default.
    #[serde(default = "default_timeout", with = "millis", rename = "timeout_ms")]
    pub timeout: Duration,
    /// How many tries must fail in a row before it counts as failing; 3 by default.
    #[serde(default = "default_failures")]
    pub failures_to_unhealthy: u32,
    /// How many must succeed in a row before it counts as passing again; 2 by default.
    #[serde(default = "default_successes")]
    pub successes_to_healthy: u32,
}

/// What a check tries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum CheckKind {
    /// A connection to the port.
    Tcp,
    /// A GET request.
    Http {
        /// The path, with a leading slash.
        path: String,
        /// Which answers are good; 200 to 299 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expect_status: Option<RangeInclusive<u16>>,
    },
    /// A request of gRPC's health protocol.
    Grpc {
        /// The service asked about; empty for the whole server.
        #[serde(default)]
        service: String,
    },
    /// A command that the node's own configuration defines under this name. A registration never carries a command line,
    /// since whoever can register could then run anything on the node.
    Command {
        /// The name there.
        name: String,
    },
}

impl Check {
    /// A check of this kind with the default times.
    pub fn new(kind: CheckKind) -> Self {
        Self {
            kind,
            interval: default_interval(),
            timeout: default_timeout(),
            failures_to_unhealthy: default_failures(),
            successes_to_healthy: default_successes(),
        }
    }

    fn validate(&self) -> Result<()> {
        match &self.kind {
            CheckKind::Tcp => {}
            CheckKind::Http { path, expect_status } => {
                check_text("path of a check", path, 1, 1_024)?;
                if !path.starts_with('/') || path.contains(' ') {
                    return Err(Error::invalid(format!(
                        "path {path:?} of a check is not allowed: begin with a slash, without spaces"
                    )));
                }
                if let Some(range) = expect_status
                    && (range.is_empty() || *range.start() < 100 || *range.end() > 599)
                {
                    return Err(Error::invalid(format!(
                        "expect_status {}-{} is not allowed: use a range within 100 to 599",
                        range.start(),
                        range.end()
                    )));
                }
            }
            CheckKind::Grpc { service } => check_text("service of a check", service, 0, 256)?,
            CheckKind::Command { name } => check_text("command of a check", name, 1, 128)?,
        }
        if self.interval < INTERVAL_MIN || self.interval > INTERVAL_MAX {
            return Err(Error::invalid(format!(
                "interval {:?} of a check is not allowed: use {INTERVAL_MIN:?} to {INTERVAL_MAX:?}",
                self.interval
            )));
        }
        if self.timeout.is_zero() || self.timeout > self.interval {
            return Err(Error::invalid(format!(
                "timeout {:?} of a check is not allowed: use more than zero and at most its interval, {:?}",
                self.timeout, self.interval
            )));
        }
        for (field, count) in
            [("failures_to_unhealthy", self.failures_to_unhealthy), ("successes_to_healthy", self.successes_to_healthy)]
        {
            if !(1..=100).contains(&count) {
                return Err(Error::invalid(format!("{field} {count} of a check is not allowed: use 1 to 100")));
            }
        }
        Ok(())
    }
}

/// What the last check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "health", rename_all = "lowercase")]
pub enum Health {
    /// Nobody has reported.
    #[default]
    Unchecked,
    /// It works.
    Passing,
    /// It does not.
    Failing {
        /// What happened, for people.
        why: String,
    },
}

const ATTRIBUTES_MAX: usize = 64;
const ATTRIBUTE_BYTES_MAX: usize = 16 * 1024;
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(3_600);

fn default_weight() -> u32 {
    100
}

fn default_interval() -> Duration {
    Duration::from_secs(10)
}

fn default_timeout() -> Duration {
    Duration::from_secs(2)
}

fn default_failures() -> u32 {
    3
}

fn default_successes() -> u32 {
    2
}

fn check_text(what: &str, text: &str, min: usize, max: usize) -> Result<()> {
    if !(min..=max).contains(&text.len()) {
        return Err(Error::invalid(format!("{what} has {} bytes: use {min} to {max}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(format!("{what} {text:?} is not allowed: it contains a control character")));
    }
    Ok(())
}

fn check_address(address: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(allowed);
    if address.parse::<IpAddr>().is_ok() || (address.len() <= 253 && address.split('.').all(is_label)) {
        return Ok(());
    }
    Err(Error::invalid(format!("address {address:?} is not allowed: use a host name or an IP address, without a port")))
}

/// Durations as whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(duration.as_millis() as u64)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes_and_skips_what_it_does_not_know() {
        let mut instance = Instance::new("web", "10.0.0.1", 80);
        instance.id = "a".to_owned();
        let path = "/health".to_owned();
        for kind in [
            CheckKind::Tcp,
            CheckKind::Http { path, expect_status: Some(200..=204) },
            CheckKind::Grpc { service: String::new() },
            CheckKind::Command { name: "probe".to_owned() },
        ] {
            instance.check = Some(Check::new(kind));
            let text = serde_json::to_string(&instance).expect("writes");
            assert_eq!(serde_json::from_str::<Instance>(&text).expect("reads"), instance, "{text}");
        }
        let newer = r#"{"id":"a","service":"web","address":"h","port":1,"colour":"red","check":{"kind":"tcp","x":1}}"#;
        let read: Instance = serde_json::from_str(newer).expect("unknown fields are skipped");
        assert_eq!((read.weight, read.check), (100, Some(Check::new(CheckKind::Tcp))));
    }

    #[test]
    fn says_which_rule_is_broken() {
        let good = Instance::new("web", "h.example", 80);
        good.validate().expect("valid");
        let broken = |change: fn(&mut Instance)| {
            let mut instance = good.clone();
            change(&mut instance);
            instance.validate().expect_err("invalid").to_string()
        };
        let cases = [
            (broken(|i| i.service = "a//b".into()), "empty segment"),
            (broken(|i| i.service = "x".repeat(101)), "1 to 100 bytes"),
            (broken(|i| i.id = "a/b".into()), "slash"),
            (broken(|i| i.address = "host:80".into()), "without a port"),
            (broken(|i| i.port = 0), "1 to 65535"),
            (broken(|i| i.weight = 1_001), "0 to 1000"),
            (broken(|i| i.tags = vec!["t".into(); 65]), "at most 64"),
            (broken(|i| i.metadata = BTreeMap::from([("k".into(), "v".repeat(17_000))])), "at most 16384"),
            (broken(|i| i.check = Some(Check { timeout: Duration::ZERO, ..Check::new(CheckKind::Tcp) })), "timeout"),
        ];
        for (message, rule) in cases {
            assert!(message.contains(rule), "{message} does not name {rule}");
        }
    }
}
