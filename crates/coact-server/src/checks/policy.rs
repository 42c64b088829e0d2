//! Which addresses a check may connect to.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use coact_core::{Error, Result};

/// A range of addresses, as `10.0.0.0/8` or `fd00::/8`; an address alone is a range of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = u32::from(own) ^ u32::from(other);
                differing.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = u128::from(own) ^ u128::from(other);
                differing.leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        }
    }
}

impl FromStr for Prefix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let parsed = address.parse::<IpAddr>().ok().and_then(|address| {
            let longest: u8 = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.map_or(Some(longest), |bits| bits.parse().ok())?;
            (bits <= longest).then_some(Self { address, bits })
        });
        parsed.ok_or_else(|| {
            Error::invalid(format!("range {text:?} is not allowed: write it as 10.0.0.0/8 or fd00::/8, or one address"))
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// Says why an address may not be connected to, if so.
pub(super) fn refusal(address: IpAddr, allow: &[Prefix]) -> Option<String> {
    let reached = reached_by(address);
    if let Some(what) = never(reached) {
        return Some(format!("{address} is {what}, where checks are never sent"));
    }
    if allow.is_empty() || allow.iter().any(|prefix| prefix.contains(reached)) {
        return None;
    }
    Some(format!("{address} is not in what checks.allow names"))
}

/// The address that packets arrive at: IPv6 has several ways to write one of IPv4.
fn reached_by(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address.to_canonical() else { return address.to_canonical() };
    let [a, b, c, .., y, z] = v6.segments();
    let embedded = match (a, b) {
        // NAT64 and its local use, 6to4, and the old compatible form.
        (0x64, 0xff9b) => Some((y, z)),
        (0x2002, _) => Some((b, c)),
        (0, 0) if v6.segments()[..6] == [0; 6] && !v6.is_loopback() && !v6.is_unspecified() => Some((y, z)),
        _ => None,
    };
    match embedded {
        Some((high, low)) => IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        None => IpAddr::V6(v6),
    }
}

/// What an address is, if no check may ever reach it.
fn never(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) if v4.is_link_local() => Some("link-local"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        _ if METADATA.contains(&address) => Some("where a cloud tells secrets"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.is_broadcast() => Some("no address of a host"),
        _ if address.is_unspecified() || address.is_multicast() => Some("no address of a host"),
        _ => None,
    }
}

/// Where clouds answer questions about the machine, beside 169.254.169.254: AWS, Alibaba, Oracle.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn link_local_addresses_are_refused_however_they_are_written() {
        for address in [
            "169.254.169.254",
            "169.254.0.1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
        ] {
            assert!(refusal(ip(address), &[]).is_some(), "{address}");
            let all: [Prefix; 2] = ["0.0.0.0/0", "::/0"].map(|all| all.parse().expect("a range"));
            assert!(refusal(ip(address), &all).is_some(), "{address} cannot be allowed");
        }
        for address in ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "fd00::1", "8.8.8.8", "::ffff:10.0.0.1"] {
            assert_eq!(refusal(ip(address), &[]), None, "{address}");
        }
    }

    #[test]
    fn what_is_allowed_can_be_narrowed() {
        let allow = ["10.1.0.0/16", "fd00::/8", "127.0.0.1"].map(|text| text.parse().expect("a range"));
        for (address, allowed) in [
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("::ffff:10.1.0.1", true),
            ("fdff::1", true),
            ("fe00::1", false),
            ("127.0.0.1", true),
            ("127.0.0.2", false),
        ] {
            assert_eq!(refusal(ip(address), &allow).is_none(), allowed, "{address}");
        }
        for text in ["", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/x"] {
            let error = text.parse::<Prefix>().expect_err("no range");
            assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
        }
        assert_eq!("10.0.0.1".parse::<Prefix>().expect("a range").to_string(), "10.0.0.1/32");
    }
}
