//! How far a consumer came in one partition: records finish in any order, and what is committed says so exactly.
//!
//! Committed is the lowest unfinished offset, and beside it a note of what is finished beyond: `1+4,2+9` says that after
//! one unfinished offset four are finished, and after two more, nine. So a restart does no finished record again. No more
//! is read than the note is sure to have room for.

use std::collections::BTreeSet;

use bytes::Bytes;
use coact_core::contract::{commit::METADATA_BYTES_MAX, stream::Offset};

/// What is unfinished between the committed offset and the one to read next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    position: u64,
    open: BTreeSet<u64>,
    /// Finished before this consumer came, as `[from, to)`, at or after the position.
    known: Vec<(u64, u64)>,
}

impl Progress {
    /// Begins where a note says. A note that is none says nothing: records are then done again.
    pub(super) fn restore(committed: Offset, note: &[u8]) -> Self {
        let runs = std::str::from_utf8(note).ok().and_then(|note| read_note(committed.0, note));
        Self { position: committed.0, open: BTreeSet::new(), known: runs.unwrap_or_default() }
    }

    /// The offset to read next.
    pub(super) fn position(&self) -> Offset {
        Offset(self.position)
    }

    /// The lowest unfinished offset.
    pub(super) fn committed(&self) -> Offset {
        Offset(self.open.first().copied().unwrap_or(self.position))
    }

    #[cfg(test)]
    pub(super) fn unfinished(&self) -> usize {
        self.open.len()
    }

    /// Whether another record may become unfinished, at this offset, so that the note still fits.
    pub(super) fn has_room(&self, most: usize, offset: Offset) -> bool {
        let end = self.known.last().map_or(offset.0, |known| known.1.max(offset.0));
        let digits = (end - self.committed().0.min(end)).max(1).ilog10() as usize + 1;
        let runs = self.open.len() + self.known.len() + 1;
        self.open.len() < most && runs * (2 * digits + 2) <= METADATA_BYTES_MAX
    }

    /// A record was read; true if it is to be done.
    pub(super) fn read(&mut self, offset: Offset) -> bool {
        self.advance(Offset(offset.0 + 1));
        let known = self.known.iter().any(|(from, to)| (*from..*to).contains(&offset.0));
        if !known {
            self.open.insert(offset.0);
        }
        self.known.retain(|(_, to)| *to > self.position);
        !known
    }

    /// There is nothing before this offset any more that was not read.
    pub(super) fn advance(&mut self, next: Offset) {
        self.position = self.position.max(next.0);
    }

    /// A record is done; false if it was.
    pub(super) fn finish(&mut self, offset: Offset) -> bool {
        self.open.remove(&offset.0)
    }

    /// What is finished beyond the committed offset.
    pub(super) fn note(&self) -> Bytes {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut done_from = None;
        for open in &self.open {
            if let Some(from) = done_from.filter(|from| from < open) {
                runs.push((from, *open));
            }
            done_from = Some(open + 1);
        }
        if let Some(from) = done_from.filter(|from| *from < self.position) {
            runs.push((from, self.position));
        }
        for (from, to) in &self.known {
            let from = self.position.max(*from);
            match runs.last_mut() {
                Some((_, end)) if *end == from => *end = *to,
                _ => runs.push((from, *to)),
            }
        }
        let mut place = self.committed().0;
        let mut note = Vec::new();
        for (from, to) in runs {
            note.push(format!("{}+{}", from - place, to - from));
            place = to;
        }
        note.join(",").into()
    }
}

fn read_note(committed: u64, note: &str) -> Option<Vec<(u64, u64)>> {
    let mut place = committed;
    let mut runs = Vec::new();
    for run in note.split(',').filter(|run| !run.is_empty()) {
        let (open, done) = run.split_once('+')?;
        let from = place.checked_add(open.parse().ok()?)?;
        place = from.checked_add(done.parse().ok()?)?;
        runs.push((from, place));
    }
    Some(runs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_note_says_what_is_finished() {
        let mut progress = Progress::restore(Offset(10), b"");
        for offset in 10..20 {
            assert!(progress.read(Offset(offset)));
        }
        assert_eq!((progress.committed(), progress.note()), (Offset(10), Bytes::new()));
        for offset in [11, 12, 15, 19] {
            progress.finish(Offset(offset));
        }
        assert_eq!((progress.committed(), &progress.note()[..]), (Offset(10), &b"1+2,2+1,3+1"[..]));
        progress.finish(Offset(10));
        assert_eq!((progress.committed(), &progress.note()[..]), (Offset(13), &b"2+1,3+1"[..]));
        assert_eq!(Progress::restore(Offset(7), b"what?"), Progress::restore(Offset(7), b""));
    }

    proptest! {
        #[test]
        fn a_restart_does_what_is_unfinished_and_nothing_else(
            steps in proptest::collection::vec((1u64..5, any::<bool>()), 0..200),
            read_again in 0usize..50,
            start in 0u64..1_000_000_000,
        ) {
            let mut progress = Progress::restore(Offset(start), b"");
            let (mut offset, mut all, mut open) = (start, Vec::new(), Vec::new());
            for (gap, finished) in steps {
                offset += gap;
                if !progress.has_room(1_000, Offset(offset)) {
                    break;
                }
                progress.read(Offset(offset));
                all.push(offset);
                if finished {
                    progress.finish(Offset(offset));
                } else {
                    open.push(offset);
                }
            }
            // Twice, the first time in the middle of reading again.
            for read in [read_again, all.len()] {
                let note = progress.note();
                prop_assert!(note.len() <= METADATA_BYTES_MAX);
                let mut again = Progress::restore(progress.committed(), &note);
                let to_read = all.iter().filter(|offset| **offset >= again.position).copied().collect::<Vec<_>>();
                let done: Vec<_> = to_read.into_iter().take(read).filter(|offset| again.read(Offset(*offset))).collect();
                prop_assert_eq!(&done, &open.iter().copied().take(done.len()).collect::<Vec<_>>());
                progress = again;
            }
            prop_assert_eq!(progress.unfinished(), open.len());
        }
    }
}
