//! Counters by two labels with closed sets of values, so that nobody can make labels up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use coact_blocks::directory::CheckKind;
use hickory_proto::{op::ResponseCode, rr::RecordType};

use super::{Metrics, OTHER, Page};

/// What is asked for over DNS.
const DNS_TYPES: [&str; 8] = ["A", "AAAA", "SRV", "CNAME", "SOA", "NS", "ANY", OTHER];
/// How DNS answers.
const DNS_CODES: [&str; 8] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS", OTHER];
/// The kinds of health checks.
const CHECK_KINDS: [&str; 4] = ["tcp", "http", "grpc", "command"];
/// How a try of one ends.
const CHECK_OUTCOMES: [&str; 4] = ["passed", "failed", "timed-out", "refused"];

/// Counters of a family, one for each pair of values.
#[derive(Debug)]
pub(super) struct Grid {
    rows: &'static [&'static str],
    columns: &'static [&'static str],
    counts: Vec<AtomicU64>,
}

impl Grid {
    pub(super) fn new(rows: &'static [&'static str], columns: &'static [&'static str]) -> Self {
        let counts = (0..rows.len() * columns.len()).map(|_| AtomicU64::new(0)).collect();
        Self { rows, columns, counts }
    }

    /// Counts one. A value that is not in the set counts as the last one.
    pub(super) fn note(&self, row: &str, column: &str) {
        let place = |values: &[&str], value| {
            values.iter().position(|known| *known == value).unwrap_or(values.len().saturating_sub(1))
        };
        let index = place(self.rows, row) * self.columns.len() + place(self.columns, column);
        if let Some(count) = self.counts.get(index) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// The lines of the pairs that were counted.
    pub(super) fn render(&self, page: &mut Page, name: &str, help: &str, labels: (&str, &str)) {
        page.head(name, "counter", help);
        for (row, counts) in self.rows.iter().zip(self.counts.chunks(self.columns.len())) {
            for (column, count) in self.columns.iter().zip(counts) {
                let count = count.load(Relaxed);
                if count > 0 {
                    page.line(name, &format!("{}=\"{row}\",{}=\"{column}\"", labels.0, labels.1), count);
                }
            }
        }
    }
}

/// What is counted about DNS.
#[derive(Debug)]
pub(super) struct Dns {
    answered: Grid,
    dropped: AtomicU64,
}

impl Default for Dns {
    fn default() -> Self {
        Self { answered: Grid::new(&DNS_TYPES, &DNS_CODES), dropped: AtomicU64::new(0) }
    }
}

impl Dns {
    pub(super) fn render(&self, page: &mut Page) {
        let help = "DNS questions that were answered, by type and code.";
        self.answered.render(page, "coact_dns_requests_total", help, ("type", "code"));
        let help = "DNS packets and connections that got no answer: no questions, or too many at once.";
        page.counter("coact_dns_dropped_total", help, self.dropped.load(Relaxed));
    }
}

/// What is counted about health checks.
#[derive(Debug)]
pub(super) struct Checks(Grid);

impl Default for Checks {
    fn default() -> Self {
        Self(Grid::new(&CHECK_KINDS, &CHECK_OUTCOMES))
    }
}

impl Checks {
    pub(super) fn render(&self, page: &mut Page) {
        let help = "Tries of health checks, by kind and outcome.";
        self.0.render(page, "coact_checks_total", help, ("kind", "outcome"));
    }
}

impl Metrics {
    /// Counts a try of a health check.
    pub(crate) fn checked(&self, kind: &CheckKind, outcome: &str) {
        let kind = match kind {
            CheckKind::Tcp => "tcp",
            CheckKind::Http { .. } => "http",
            CheckKind::Grpc { .. } => "grpc",
            CheckKind::Command { .. } => "command",
        };
        self.checks.0.note(kind, outcome);
    }

    /// Counts an answer over DNS.
    pub(crate) fn dns_answered(&self, kind: Option<RecordType>, code: ResponseCode) {
        let kind = kind.map_or_else(|| OTHER.to_owned(), |kind| kind.to_string());
        self.dns.answered.note(&kind, code_name(code));
    }

    /// Counts what got no answer.
    pub(crate) fn dns_dropped(&self) {
        self.dns.dropped.fetch_add(1, Relaxed);
    }
}

fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => OTHER,
    }
}
