//! What a name asks for.

use hickory_proto::rr::Name;

/// What a name in a query means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// It is none of ours.
    Outside,
    /// The domain itself.
    Apex,
    /// A name that exists only because others are below it.
    Branch,
    /// A name that nothing can have.
    Nothing,
    /// Instances of a service.
    Service {
        /// The service.
        service: String,
        /// Which of its instances.
        which: Which,
    },
}

/// Which instances of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// All of them.
    All,
    /// All of them, as `_web._tcp`.
    Srv,
    /// Those with this tag.
    Tag(String),
    /// Those with this label.
    Instance(String),
    /// None: the name only exists because those of instances are below it.
    Beneath,
}

/// Reads a name within the domain, whose letters are lower case.
pub(super) fn read(name: &Name, domain: &Name) -> Ask {
    let labels: Vec<Vec<u8>> = name.iter().map(<[u8]>::to_ascii_lowercase).collect();
    let domain: Vec<&[u8]> = domain.iter().collect();
    let Some(cut) = labels.len().checked_sub(domain.len()) else { return Ask::Outside };
    if labels[cut..].iter().zip(&domain).any(|(label, expected)| label.as_slice() != *expected) {
        return Ask::Outside;
    }
    let Ok(labels) = labels[..cut].iter().map(|label| std::str::from_utf8(label)).collect::<Result<Vec<_>, _>>() else {
        return Ask::Nothing;
    };
    match labels.split_last() {
        None => Ask::Apex,
        Some((&"service", [])) => Ask::Branch,
        Some((&"service", labels)) => read_service(labels),
        Some(_) => Ask::Nothing,
    }
}

/// Reads the labels before `service`, of which there is one at least.
fn read_service(labels: &[&str]) -> Ask {
    let (first, rest) = (labels[0], &labels[1..]);
    match (first, rest) {
        ("instance" | "_tag" | "_tcp", []) => Ask::Branch,
        ("instance" | "_tag" | "_tcp", service) => of(service, Which::Beneath),
        (_, ["instance", service @ ..]) if !service.is_empty() => of(service, Which::Instance(first.to_owned())),
        (_, ["_tag", service @ ..]) if !service.is_empty() => of(service, Which::Tag(first.to_owned())),
        (_, ["_tcp", outer @ ..]) => match first.strip_prefix('_') {
            Some(name) => of(&[&[name], outer].concat(), Which::Srv),
            None => Ask::Nothing,
        },
        _ => of(labels, Which::All),
    }
}

/// A service from its labels, the last segment first.
fn of(labels: &[&str], which: Which) -> Ask {
    if labels.iter().any(|label| label.is_empty() || label.contains('/')) {
        return Ask::Nothing;
    }
    let segments: Vec<&str> = labels.iter().rev().copied().collect();
    Ask::Service { service: segments.join("/"), which }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_of_a_name() {
        let domain = Name::from_ascii("coact.example.").expect("a name");
        let service = |service: &str, which| Ask::Service { service: service.to_owned(), which };
        let cases = [
            ("coact.example.", Ask::Apex),
            ("example.", Ask::Outside),
            (".", Ask::Outside),
            ("web.service.other.example.", Ask::Outside),
            ("notcoact.example.", Ask::Outside),
            ("service.coact.example.", Ask::Branch),
            ("other.coact.example.", Ask::Nothing),
            ("web.service.coact.example.", service("web", Which::All)),
            ("WEB.Service.COACT.example.", service("web", Which::All)),
            ("web.eu.service.coact.example.", service("eu/web", Which::All)),
            ("*.service.coact.example.", service("*", Which::All)),
            ("_web._tcp.service.coact.example.", service("web", Which::Srv)),
            ("_web._tcp.eu.service.coact.example.", service("eu/web", Which::Srv)),
            ("web._tcp.service.coact.example.", Ask::Nothing),
            ("_._tcp.service.coact.example.", Ask::Nothing),
            ("_tcp.service.coact.example.", Ask::Branch),
            ("_tcp.eu.service.coact.example.", service("eu", Which::Beneath)),
            ("blue._tag.web.eu.service.coact.example.", service("eu/web", Which::Tag("blue".into()))),
            ("_tag.web.service.coact.example.", service("web", Which::Beneath)),
            ("a1.instance.web.service.coact.example.", service("web", Which::Instance("a1".into()))),
            ("instance.web.service.coact.example.", service("web", Which::Beneath)),
        ];
        for (name, expected) in cases {
            assert_eq!(read(&Name::from_ascii(name).expect("a name"), &domain), expected, "{name}");
        }
        let slash = Name::from_labels([b"eu/web".as_slice(), b"service", b"coact", b"example"]).expect("a name");
        assert_eq!(read(&slash, &domain), Ask::Nothing, "one name for each service");
    }
}
