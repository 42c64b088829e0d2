//! A sorted map in pages that clones share: a clone takes a step for each page, and a page is copied when it is changed
//! while a clone has it. So a snapshot is taken of millions of entries without stopping the writer.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

/// The most entries of a page: copying one takes microseconds, and the map of pages stays small.
const PAGE_ENTRIES: usize = 256;

/// Keys in order, with values.
#[derive(Clone, Debug)]
pub(crate) struct PagedMap<K, V> {
    /// By a key that is not greater than any in the page. No page is empty.
    pages: BTreeMap<K, Arc<Vec<(K, V)>>>,
    len: usize,
}

impl<K, V> Default for PagedMap<K, V> {
    fn default() -> Self {
        Self { pages: BTreeMap::new(), len: 0 }
    }
}

impl<K: Ord + Copy, V: Clone> PagedMap<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let (_, page) = self.pages.range(..=key).next_back()?;
        find(page, key).ok().map(|index| &page[index].1)
    }

    /// A value to change; its page is copied if a clone has it.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let (_, page) = self.pages.range_mut(..=key).next_back()?;
        let index = find(page, key).ok()?;
        Some(&mut Arc::make_mut(page)[index].1)
    }

    /// Sets a value and returns the one before.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = match self.pages.range(..=key).next_back() {
            Some((at, _)) => *at,
            None => match self.pages.pop_first() {
                // Before everything: the first page gets it.
                Some((_, page)) => {
                    self.pages.insert(key, page);
                    key
                }
                None => {
                    self.pages.insert(key, Arc::new(vec![(key, value)]));
                    self.len = 1;
                    return None;
                }
            },
        };
        let page = Arc::make_mut(self.pages.get_mut(&at)?);
        match find(page, &key) {
            Ok(index) => return Some(std::mem::replace(&mut page[index].1, value)),
            // What comes at the end begins a page of its own, so that pages filled in order are full.
            Err(index) if index == page.len() && index >= PAGE_ENTRIES => {
                self.pages.insert(key, Arc::new(vec![(key, value)]));
            }
            Err(index) => {
                if page.len() == PAGE_ENTRIES {
                    // It is split right away: a vector that doubles would leave the lower half three quarters empty.
                    page.reserve_exact(1);
                }
                page.insert(index, (key, value));
                if page.len() > PAGE_ENTRIES {
                    let upper = page.split_off(page.len() / 2);
                    self.pages.insert(upper[0].0, Arc::new(upper));
                }
            }
        }
        self.len += 1;
        None
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (at, page) = self.pages.range_mut(..=key).next_back()?;
        let (at, index) = (*at, find(page, key).ok()?);
        let page = Arc::make_mut(page);
        let (_, value) = page.remove(index);
        self.len -= 1;
        if page.len() < PAGE_ENTRIES / 8 {
            self.shrink(at);
        }
        Some(value)
    }

    /// Drops an empty page, and joins a small one with the next.
    fn shrink(&mut self, at: K) {
        let Some(page) = self.pages.get(&at) else { return };
        if page.is_empty() {
            self.pages.remove(&at);
            return;
        }
        let Some((next, following)) = self.pages.range((Bound::Excluded(at), Bound::Unbounded)).next() else { return };
        if page.len() + following.len() > PAGE_ENTRIES / 2 {
            return;
        }
        let next = *next;
        if let Some(following) = self.pages.remove(&next)
            && let Some(page) = self.pages.get_mut(&at)
        {
            Arc::make_mut(page).extend(following.iter().cloned());
        }
    }

    pub(crate) fn first(&self) -> Option<(&K, &V)> {
        self.pages.first_key_value().and_then(|(_, page)| page.first()).map(pair)
    }

    pub(crate) fn last(&self) -> Option<(&K, &V)> {
        self.pages.last_key_value().and_then(|(_, page)| page.last()).map(pair)
    }

    /// The last entry whose key is not greater.
    pub(crate) fn floor(&self, key: &K) -> Option<(&K, &V)> {
        let (_, page) = self.pages.range(..=key).next_back()?;
        let index = match find(page, key) {
            Ok(index) => index,
            // The page before may be all smaller, and this one's first key greater.
            Err(0) => {
                let first = page.first()?.0;
                return self
                    .pages
                    .range(..first)
                    .rev()
                    .filter_map(|(_, page)| page.last())
                    .map(pair)
                    .find(|(found, _)| *found <= key);
            }
            Err(index) => index - 1,
        };
        page.get(index).map(pair)
    }

    /// The entries from a key on, in order.
    pub(crate) fn from<'a>(&'a self, key: &K) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let first = self.pages.range(..=key).next_back().map_or(*key, |(at, _)| *at);
        let key = *key;
        self.pages.range(first..).flat_map(move |(_, page)| {
            let skip = find(page, &key).unwrap_or_else(|index| index);
            page[skip..].iter().map(pair)
        })
    }

    /// How many keys are less than this one: a step for each page.
    pub(crate) fn rank(&self, key: &K) -> usize {
        let mut before = self.pages.range(..=key);
        let last = before.next_back().map_or(0, |(_, page)| find(page, key).unwrap_or_else(|index| index));
        last + before.map(|(_, page)| page.len()).sum::<usize>()
    }

    /// The first entry for which `before` does not hold; it holds for all entries up to some key, and for none after.
    pub(crate) fn partition_point(&self, mut before: impl FnMut(&K, &V) -> bool) -> Option<(&K, &V)> {
        let mut earlier: Option<&Arc<Vec<(K, V)>>> = None;
        for page in self.pages.values() {
            let starts_after = page.first().is_some_and(|(key, value)| !before(key, value));
            if starts_after {
                let within = earlier.and_then(|page| page.iter().find(|(key, value)| !before(key, value)));
                return within.or(page.first()).map(pair);
            }
            earlier = Some(page);
        }
        earlier.and_then(|page| page.iter().find(|(key, value)| !before(key, value))).map(pair)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.pages.values().flat_map(|page| page.iter()).map(pair)
    }
}

fn pair<K, V>((key, value): &(K, V)) -> (&K, &V) {
    (key, value)
}

fn find<K: Ord, V>(page: &[(K, V)], key: &K) -> Result<usize, usize> {
    page.binary_search_by(|(found, _)| found.cmp(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16, u32),
        Remove(u16),
        Change(u16),
        Clone,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (any::<u16>(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key % 2_000, value)),
            4 => any::<u16>().prop_map(|key| Step::Remove(key % 2_000)),
            1 => any::<u16>().prop_map(|key| Step::Change(key % 2_000)),
            1 => Just(Step::Clone),
        ]
    }

    proptest! {
        #[test]
        fn is_a_map_and_its_clones_stay(start in 0u16..2_000, steps in proptest::collection::vec(step(), 0..3_000), probe: u16) {
            let mut map: PagedMap<u16, u32> = PagedMap::default();
            let mut model = BTreeMap::new();
            for key in 0..start {
                map.insert(key, 0);
                model.insert(key, 0);
            }
            let mut clones = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(key, value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    Step::Remove(key) => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    Step::Change(key) => {
                        if let Some(value) = map.get_mut(&key) { *value += 1 }
                        if let Some(value) = model.get_mut(&key) { *value += 1 }
                    }
                    Step::Clone => if clones.len() < 3 { clones.push((map.clone(), model.clone())) },
                }
            }
            clones.push((map, model));
            for (map, model) in clones {
                prop_assert!(map.iter().eq(model.iter()));
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.first(), model.first_key_value());
                prop_assert_eq!(map.last(), model.last_key_value());
                let probe = probe % 2_000;
                prop_assert_eq!(map.get(&probe), model.get(&probe));
                prop_assert_eq!(map.floor(&probe), model.range(..=probe).next_back());
                prop_assert!(map.from(&probe).eq(model.range(probe..)));
                prop_assert_eq!(map.partition_point(|key, _| *key < probe), model.range(probe..).next());
                prop_assert_eq!(map.rank(&probe), model.range(..probe).count());
            }
        }
    }
}
