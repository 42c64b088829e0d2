//! The window that ids are issued from: one atomic word, no lock.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use super::Layout;

/// What a generator may issue now. Any thread takes from it; only the generator's task opens, extends and stops it.
///
/// The position is one word, `(time, sequence)`, that strictly increases over the life of the generator. Worker and end
/// belong to the position: they change only while it reads [`STOPPED`], and the position never returns to an earlier
/// value, so a taker whose compare-and-swap succeeds has read the worker and end that go with it.
#[derive(Debug)]
pub(super) struct Window {
    layout: Layout,
    /// The position issued last.
    last: AtomicU64,
    /// The worker number.
    worker: AtomicU64,
    /// The first millisecond that is not ours.
    until: AtomicU64,
}

/// Why nothing can be taken now. Times are in milliseconds since [`super::EPOCH_MS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The clock must reach this millisecond.
    Tick(u64),
    /// The window has ended, or none is open.
    Renewal,
}

const STOPPED: u64 = u64::MAX;

impl Window {
    /// A window that is not open.
    pub(super) fn new(layout: Layout) -> Self {
        Self { layout, last: AtomicU64::new(STOPPED), worker: AtomicU64::new(0), until: AtomicU64::new(0) }
    }

    /// Takes up to `count` ids, which follow each other. `now` is the clock's millisecond.
    #[inline]
    pub(super) fn take(&self, now: u64, count: u64) -> Result<Range<u64>, Wait> {
        let sequence_bits = self.layout.sequence_bits();
        let mut last = self.last.load(Ordering::Acquire);
        loop {
            if last == STOPPED {
                return Err(Wait::Renewal);
            }
            let first = (last + 1).max(now << sequence_bits);
            let time = first >> sequence_bits;
            // The sequence of the last millisecond is used up, or the window begins later than now.
            if time > now && time > last >> sequence_bits {
                return Err(Wait::Tick(time));
            }
            if time >= self.until.load(Ordering::Acquire) {
                return Err(Wait::Renewal);
            }
            let worker = self.worker.load(Ordering::Acquire);
            let end_of_time = (time + 1) << sequence_bits;
            let end = first.saturating_add(count).min(end_of_time);
            match self.last.compare_exchange_weak(last, end - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    let first_id = self.id(first, worker);
                    return Ok(first_id..first_id + (end - first));
                }
                Err(changed) => last = changed,
            }
        }
    }

    /// Begins to issue for a worker in `[from, until)`. `from` is later than what [`stop`](Self::stop) returned.
    pub(super) fn open(&self, worker: u32, from: u64, until: u64) {
        self.until.store(until, Ordering::Release);
        self.worker.store(u64::from(worker), Ordering::Release);
        self.last.store((from << self.layout.sequence_bits()) - 1, Ordering::Release);
    }

    /// Moves the end of the window.
    pub(super) fn extend(&self, until: u64) {
        self.until.fetch_max(until, Ordering::AcqRel);
    }

    /// Stops issuing at once and returns the millisecond after the last one issued in; `None` if it was not open.
    pub(super) fn stop(&self) -> Option<u64> {
        match self.last.swap(STOPPED, Ordering::AcqRel) {
            STOPPED => None,
            last => Some((last >> self.layout.sequence_bits()) + 1),
        }
    }

    /// The worker number it issues for, or issued for last.
    pub(super) fn worker(&self) -> u32 {
        self.worker.load(Ordering::Acquire) as u32
    }

    #[inline]
    fn id(&self, position: u64, worker: u64) -> u64 {
        let sequence_bits = self.layout.sequence_bits();
        let time = position >> sequence_bits;
        let sequence = position & (self.layout.per_ms() - 1);
        ((time << self.layout.worker_bits() | worker) << sequence_bits) | sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(layout: Layout) -> Window {
        let window = Window::new(layout);
        window.open(3, 100, 105);
        window
    }

    #[test]
    fn issues_only_inside_the_window() {
        let window = open(Layout::JS53);
        assert_eq!(window.take(99, 1), Err(Wait::Tick(100)), "not before it begins");
        let first = window.take(100, 1).expect("inside").start;
        assert_eq!(first, ((100 << 6) | 3) << 6);
        assert_eq!(window.take(105, 1), Err(Wait::Renewal), "not after it ends");
        window.extend(106);
        assert_eq!(window.take(105, 1).expect("extended").start, ((105 << 6) | 3) << 6);
    }

    #[test]
    fn runs_end_with_the_millisecond() {
        let window = open(Layout::JS53);
        assert_eq!(window.take(100, 60).map(|run| run.end - run.start), Ok(60));
        assert_eq!(window.take(100, 60).map(|run| run.end - run.start), Ok(4));
        assert_eq!(window.take(100, 60), Err(Wait::Tick(101)));
    }

    #[test]
    fn a_reading_of_an_old_clock_does_not_go_back() {
        let window = open(Layout::JS53);
        let later = window.take(103, 1).expect("inside").start;
        assert_eq!(window.take(101, 1).expect("the last millisecond").start, later + 1);
    }

    #[test]
    fn issues_nothing_once_stopped_and_says_how_far_it_came() {
        let window = open(Layout::STD);
        window.take(102, 1).expect("inside");
        assert_eq!(window.stop(), Some(103));
        assert_eq!(window.take(102, 1), Err(Wait::Renewal));
        assert_eq!(window.stop(), None);
        let window = open(Layout::STD);
        assert_eq!(window.stop(), Some(100), "nothing issued: all that was reserved is free");
    }

    #[test]
    fn threads_never_take_the_same() {
        let window = open(Layout::new(41, 1, 20).expect("valid"));
        let mut ids: Vec<u64> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| (0..5_000).flat_map(|_| window.take(100, 3).expect("room")).collect::<Vec<_>>())
                })
                .collect();
            takers.into_iter().flat_map(|taker| taker.join().expect("no panic")).collect()
        });
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 60_000);
    }
}
