//! A file to which several processes append. The system puts the lines in one order: the order in which what they tell
//! of reached the resource.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

use coact::Env;
use coact_testkit::{
    bed::{PATIENCE, wait_until},
    check::tokens::{Report, Resource},
};

/// One line: who did what, with which number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) who: String,
    pub(super) what: String,
    pub(super) number: u64,
}

/// Every line has so many bytes, of which a page holds a whole number.
const LINE_BYTES: usize = 64;

/// The file.
#[derive(Clone, Debug)]
pub(super) struct Journal(PathBuf);

impl Journal {
    pub(super) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Appends a line, in one write: it is there as a whole or not at all. A kill may end a write at the end of a page,
    /// so no line crosses one.
    pub(super) fn note(&self, who: &str, what: &str, number: u64) {
        let mut file = File::options().create(true).append(true).open(&self.0).expect("the journal opens");
        let line = format!("{:<1$}\n", format!("{who} {what} {number}"), LINE_BYTES - 1);
        assert_eq!(line.len(), LINE_BYTES, "{line}");
        file.write_all(line.as_bytes()).expect("the journal is written");
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        // The last one may be on its way.
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(Line::read).collect()
    }

    /// The number that somebody noted with this, if it did.
    pub(super) fn find(&self, who: &str, what: &str) -> Option<u64> {
        self.lines().into_iter().find(|line| line.who == who && line.what == what).map(|line| line.number)
    }

    /// Waits until somebody has noted this, and returns the number.
    pub(super) async fn until(&self, who: &str, what: &str) -> u64 {
        let noted = wait_until(&Env::real(), what, PATIENCE, async || self.find(who, what).is_some()).await;
        noted.unwrap_or_else(|error| panic!("{who}: {error:#}; noted are {:?}", self.lines()));
        self.find(who, what).expect("seen just now")
    }

    /// Replays what was granted and written at a resource.
    pub(super) fn replay(&self, resource: &Resource) -> Report {
        for Line { who, what, number } in self.lines() {
            match what.as_str() {
                "granted" => resource.enter(&who, number),
                "writes" => drop(resource.write(&who, number)),
                "leaves" | "notices" | "lost" | "dead" => resource.leave(&who),
                _ => {}
            }
        }
        resource.report()
    }

    /// The tokens, in the order of the grants that reached the journal.
    pub(super) fn tokens(&self) -> Vec<u64> {
        self.lines().into_iter().filter(|line| line.what == "granted").map(|line| line.number).collect()
    }
}

impl Line {
    fn read(text: &str) -> Self {
        let mut words = text.split(' ');
        let mut word = || words.next().expect("three words").to_owned();
        Self { who: word(), what: word(), number: word().parse().expect("a number") }
    }
}
