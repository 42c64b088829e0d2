//! Directories: nobody is shown for long after its death, and nobody who lives is left out.

use std::collections::{BTreeMap, BTreeSet};

/// When an observer was shown something, and what; `None` if its list said that it is stale.
type View = (u64, Option<BTreeSet<String>>);

/// Who lived when, and what each observer was shown. Times are any numbers that grow.
#[derive(Clone, Debug, Default)]
pub struct Lives {
    /// When each instance came, and when it went.
    lives: BTreeMap<String, Vec<(u64, Option<u64>)>>,
    /// From when each observer was shown these; `None` while its list says that it is stale.
    views: BTreeMap<String, Vec<View>>,
    excuses: Vec<Excuse>,
}

/// For how long a directory may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// A dead instance may be shown for this long: its ttl, and until the store sweeps.
    pub linger: u64,
    /// An instance that came may be left out for this long.
    pub settle: u64,
    /// When the history ends.
    pub end: u64,
}

#[derive(Clone, Debug)]
struct Excuse {
    /// This observer or instance; `None` for everybody.
    who: Option<String>,
    from: u64,
    to: u64,
}

impl Lives {
    /// An instance is registered.
    pub fn up(&mut self, instance: &str, at: u64) {
        self.lives.entry(instance.to_owned()).or_default().push((at, None));
    }

    /// It is dead, or deregistered.
    pub fn down(&mut self, instance: &str, at: u64) {
        if let Some((_, down)) = self.lives.get_mut(instance).and_then(|lives| lives.last_mut()) {
            *down = Some(at);
        }
    }

    /// What an observer is shown from now on; `None` if its list says itself that it is stale.
    pub fn shown(&mut self, observer: &str, at: u64, instances: Option<BTreeSet<String>>) {
        self.views.entry(observer.to_owned()).or_default().push((at, instances));
    }

    /// What this one sees, or how it is seen, does not count for a while: it is cut off, or paused. `None` for everybody.
    pub fn excuse(&mut self, who: Option<&str>, from: u64, to: u64) {
        self.excuses.push(Excuse { who: who.map(str::to_owned), from, to });
    }

    /// How many views there were.
    pub fn views(&self) -> usize {
        self.views.values().map(Vec::len).sum()
    }

    /// What must never be, in words.
    pub fn check(&self, bounds: Bounds) -> Vec<String> {
        let mut violations = Vec::new();
        for (observer, views) in &self.views {
            for (index, (from, shown)) in views.iter().enumerate() {
                let to = views.get(index + 1).map_or(bounds.end, |(next, _)| *next);
                if let Some(shown) = shown {
                    self.check_view(observer, (*from, to), shown, bounds, &mut violations);
                }
            }
        }
        violations
    }

    fn check_view(
        &self,
        observer: &str,
        (from, to): (u64, u64),
        shown: &BTreeSet<String>,
        bounds: Bounds,
        violations: &mut Vec<String>,
    ) {
        for instance in shown {
            let Some(dead) = self.dead_since(instance, from) else { continue };
            if let Some(at) = self.outside(from.max(dead.saturating_add(bounds.linger)), to, &[observer]) {
                violations.push(format!("{observer} is shown {instance} at {at}, which is dead since {dead}"));
            }
        }
        for (instance, lives) in self.lives.iter().filter(|(instance, _)| !shown.contains(*instance)) {
            for (up, down) in lives {
                let (from, to) = (from.max(up.saturating_add(bounds.settle)), to.min(down.unwrap_or(u64::MAX)));
                if let Some(at) = self.outside(from, to, &[observer, instance]) {
                    violations.push(format!("{observer} is not shown {instance} at {at}, which lives since {up}"));
                }
            }
        }
    }

    /// Since when an instance is dead that does not come back after `from`.
    fn dead_since(&self, instance: &str, from: u64) -> Option<u64> {
        match self.lives.get(instance).and_then(|lives| lives.last()) {
            Some((_, down)) => *down,
            // Nobody ever registered it.
            None => Some(from),
        }
    }

    /// The first moment of an interval that none of them is excused for.
    fn outside(&self, mut from: u64, to: u64, who: &[&str]) -> Option<u64> {
        let counts = |excuse: &&Excuse| excuse.who.as_deref().is_none_or(|excused| who.contains(&excused));
        let mut excuses: Vec<_> = self.excuses.iter().filter(counts).collect();
        excuses.sort_by_key(|excuse| excuse.from);
        for excuse in excuses {
            if excuse.from <= from {
                from = from.max(excuse.to);
            }
        }
        (from < to).then_some(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { linger: 3, settle: 2, end: 100 };

    fn ids(names: &[&str]) -> Option<BTreeSet<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    /// `a` lives throughout; `b` dies at 20.
    fn lives() -> Lives {
        let mut lives = Lives::default();
        lives.up("a", 0);
        lives.up("b", 5);
        lives.down("b", 20);
        lives
    }

    #[track_caller]
    fn assert_finds(lives: &Lives, expected: &[&str]) {
        assert_eq!(lives.check(BOUNDS), expected);
    }

    #[test]
    fn a_good_directory_passes() {
        let mut lives = lives();
        for (at, shown) in [(2, ids(&["a"])), (7, ids(&["a", "b"])), (23, ids(&["a"]))] {
            lives.shown("o", at, shown);
        }
        assert_finds(&lives, &[]);
        assert_eq!(lives.views(), 3);
    }

    #[test]
    fn a_ghost_is_found() {
        let mut lives = lives();
        lives.shown("o", 7, ids(&["a", "b"]));
        lives.shown("o", 24, ids(&["a"]));
        assert_finds(&lives, &["o is shown b at 23, which is dead since 20"]);
    }

    #[test]
    fn one_whom_nobody_registered_is_found() {
        let mut lives = Lives::default();
        lives.shown("o", 7, ids(&["x"]));
        assert_finds(&lives, &["o is shown x at 10, which is dead since 7"]);
    }

    #[test]
    fn one_that_lives_and_is_left_out_is_found() {
        let mut lives = lives();
        lives.shown("o", 7, ids(&["a", "b"]));
        lives.shown("o", 15, ids(&["b"]));
        lives.shown("o", 16, ids(&["a", "b"]));
        lives.shown("o", 21, ids(&["a"]));
        assert_finds(&lives, &["o is not shown a at 15, which lives since 0"]);
    }

    #[test]
    fn an_excuse_covers_its_time_and_no_more() {
        let mut lives = lives();
        lives.shown("o", 7, ids(&["a", "b"]));
        lives.shown("o", 40, None);
        lives.shown("o", 50, ids(&[]));
        lives.excuse(Some("o"), 22, 45);
        lives.excuse(Some("a"), 45, 60);
        assert_finds(&lives, &["o is not shown a at 60, which lives since 0"]);
        lives.excuse(None, 55, 100);
        assert_finds(&lives, &[]);
    }
}
