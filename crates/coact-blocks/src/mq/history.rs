//! Samples of a number over time: the last hour by the second, the last week by the minute, and the rates between them.

use std::{collections::VecDeque, time::Duration};

/// How many samples by the second are kept: an hour.
pub const SECONDS_KEPT: usize = 3_600;
/// How many samples by the minute are kept: a week.
pub const MINUTES_KEPT: usize = 7 * 24 * 60;

/// A number at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How much.
    pub value: u64,
}

impl Sample {
    /// By how much a growing number grew each second since an earlier sample; `None` if no time has passed, or if it went
    /// back, as it does when what it counts was deleted.
    pub fn rate_since(self, earlier: Sample) -> Option<f64> {
        let ms = self.at_ms.checked_sub(earlier.at_ms).filter(|ms| *ms > 0)?;
        let grown = self.value.checked_sub(earlier.value)?;
        Some(grown as f64 * 1_000.0 / ms as f64)
    }
}

/// The samples of one number: at most one each second for an hour, and one each minute for a week.
#[derive(Clone, Debug, Default)]
pub struct History {
    seconds: VecDeque<Sample>,
    minutes: VecDeque<Sample>,
}

impl History {
    /// Takes a sample; true if it was kept. One that follows the last within a second, or comes from the past, is not.
    pub fn push(&mut self, sample: Sample) -> bool {
        let kept = keep(&mut self.seconds, sample, 1_000, SECONDS_KEPT);
        keep(&mut self.minutes, sample, 60_000, MINUTES_KEPT);
        kept
    }

    /// The newest sample.
    pub fn last(&self) -> Option<Sample> {
        self.seconds.back().copied()
    }

    /// The samples by the second, oldest first.
    pub fn seconds(&self) -> impl ExactSizeIterator<Item = Sample> + '_ {
        self.seconds.iter().copied()
    }

    /// The samples by the minute, oldest first.
    pub fn minutes(&self) -> impl ExactSizeIterator<Item = Sample> + '_ {
        self.minutes.iter().copied()
    }

    /// By how much a growing number grew each second, over about this time up to the newest sample; `None` with fewer than
    /// two samples.
    pub fn rate(&self, over: Duration) -> Option<f64> {
        let last = self.last()?;
        let from = last.at_ms.saturating_sub(u64::try_from(over.as_millis()).unwrap_or(u64::MAX));
        let reaches = self.seconds.front().is_some_and(|first| first.at_ms <= from);
        let samples = if reaches || self.minutes.len() < 2 { &self.seconds } else { &self.minutes };
        let earlier = samples.iter().find(|sample| sample.at_ms >= from && sample.at_ms < last.at_ms)?;
        last.rate_since(*earlier)
    }
}

fn keep(samples: &mut VecDeque<Sample>, sample: Sample, apart_ms: u64, most: usize) -> bool {
    // By the slot, not by the distance: samples that come a little early or late stay one for each slot.
    let slot = sample.at_ms / apart_ms;
    if samples.back().is_some_and(|last| last.at_ms / apart_ms >= slot) {
        return false;
    }
    if samples.len() == most {
        samples.pop_front();
    }
    samples.push_back(sample);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64, value: u64) -> Sample {
        Sample { at_ms: second * 1_000, value }
    }

    #[test]
    fn a_rate_is_what_a_number_grew_by_each_second() {
        assert_eq!(at(14, 500).rate_since(at(10, 100)), Some(100.0));
        assert_eq!(at(10, 500).rate_since(at(10, 100)), None, "no time has passed");
        assert_eq!(at(14, 100).rate_since(at(10, 500)), None, "it went back");
    }

    #[test]
    fn an_hour_is_kept_by_the_second_and_a_week_by_the_minute() {
        let mut history = History::default();
        let total = 8 * 24 * 3_600;
        for second in 0..total {
            assert!(history.push(at(second, second * 10)));
        }
        assert!(!history.push(Sample { at_ms: total * 1_000 - 500, value: 0 }), "one for each second");
        assert!(!history.push(at(5, 0)), "the past does not change");
        assert_eq!((history.seconds().len(), history.minutes().len()), (SECONDS_KEPT, MINUTES_KEPT));
        for over in [1, 60, 3_599, 6 * 24 * 3_600] {
            assert_eq!(history.rate(Duration::from_secs(over)), Some(10.0), "over {over} s");
        }
        assert_eq!(History::default().rate(Duration::from_secs(1)), None);
    }
}
