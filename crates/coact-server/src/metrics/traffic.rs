//! What goes in and out of topics through this node, over HTTP and gRPC.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::Page;

/// How many topics are counted; what goes through others is left out.
const TOPICS_MAX: usize = 200;

/// Counters by topic. A request takes the lock once, for a few additions.
#[derive(Debug, Default)]
pub(crate) struct Traffic(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// By namespace and name.
    topics: BTreeMap<String, BTreeMap<String, Counts>>,
    left_out: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    records_in: u64,
    bytes_in: u64,
    records_out: u64,
    bytes_out: u64,
}

/// A name, what it means, and which counter it is.
type Family = (&'static str, &'static str, fn(&Counts) -> u64);

impl Traffic {
    /// Counts records that were appended, or kept for later.
    pub(crate) fn note_in(&self, namespace: &str, topic: &str, records: u64, bytes: u64) {
        self.note(namespace, topic, Counts { records_in: records, bytes_in: bytes, ..Counts::default() });
    }

    /// Counts records that were read.
    pub(crate) fn note_out(&self, namespace: &str, topic: &str, records: u64, bytes: u64) {
        self.note(namespace, topic, Counts { records_out: records, bytes_out: bytes, ..Counts::default() });
    }

    fn note(&self, namespace: &str, topic: &str, more: Counts) {
        if more.records_in == 0 && more.records_out == 0 {
            return;
        }
        let mut counted = self.0.lock();
        let known = counted.topics.get_mut(namespace).and_then(|topics| topics.get_mut(topic));
        let counts = match known {
            Some(counts) => counts,
            None => {
                if counted.topics.values().map(BTreeMap::len).sum::<usize>() >= TOPICS_MAX {
                    counted.left_out += more.records_in + more.records_out;
                    return;
                }
                counted.topics.entry(namespace.to_owned()).or_default().entry(topic.to_owned()).or_default()
            }
        };
        counts.records_in += more.records_in;
        counts.bytes_in += more.bytes_in;
        counts.records_out += more.records_out;
        counts.bytes_out += more.bytes_out;
    }

    /// Forgets topics that are none any more.
    pub(super) fn keep(&self, known: &BTreeSet<(String, String)>) {
        self.0.lock().topics.retain(|namespace, topics| {
            topics.retain(|topic, _| known.contains(&(namespace.clone(), topic.clone())));
            !topics.is_empty()
        });
    }

    pub(super) fn render(&self, page: &mut Page) {
        let counted = self.0.lock();
        let families: [Family; 4] = [
            ("coact_topic_records_in_total", "Records that came in through this node, by topic.", |one| one.records_in),
            ("coact_topic_bytes_in_total", "Bytes that came in through this node, by topic.", |one| one.bytes_in),
            ("coact_topic_records_out_total", "Records read through this node, by topic.", |one| one.records_out),
            ("coact_topic_bytes_out_total", "Bytes read through this node, by topic.", |one| one.bytes_out),
        ];
        for (name, help, value) in families {
            page.head(name, "counter", help);
            for (namespace, topics) in &counted.topics {
                for (topic, counts) in topics {
                    page.line(name, &format!("namespace=\"{namespace}\",topic=\"{topic}\""), value(counts));
                }
            }
        }
        let help = "Records in and out of topics beyond the limit, which are counted nowhere else.";
        page.counter("coact_topic_records_left_out_total", help, counted.left_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_beyond_the_limit_are_left_out_and_counted() {
        let traffic = Traffic::default();
        for topic in 0..TOPICS_MAX + 2 {
            traffic.note_in("main", &format!("t{topic}"), 3, 30);
        }
        traffic.note_out("main", "t0", 1, 10);
        let mut page = Page::default();
        traffic.render(&mut page);
        assert_eq!(page.0.matches("coact_topic_bytes_in_total{").count(), TOPICS_MAX);
        assert!(page.0.contains("coact_topic_records_left_out_total 6\n"), "{}", page.0);
        assert!(page.0.contains("coact_topic_bytes_out_total{namespace=\"main\",topic=\"t0\"} 10\n"), "{}", page.0);
        traffic.keep(&BTreeSet::from([("main".to_owned(), "t0".to_owned())]));
        traffic.note_in("main", "new", 1, 1);
        let mut page = Page::default();
        traffic.render(&mut page);
        assert_eq!(page.0.matches("coact_topic_bytes_in_total{").count(), 2, "those that went made room");
    }
}
