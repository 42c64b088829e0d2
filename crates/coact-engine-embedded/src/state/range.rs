//! Reading: ranges at a revision, in any order, and the dirs of the Kv contract.

use std::{
    ops::Bound::{self, Excluded, Included, Unbounded},
    sync::Arc,
};

use bytes::Bytes;

use super::{Parent, Slot, State};
use crate::flat::{FlatError, FlatResult, KeyRange, RangeRequest, RangeResponse, Record, SortBy};

/// Sees everything applied, visible or not: the writer's own view.
pub(super) const WORKING: u64 = u64::MAX;

impl State {
    /// Reads a range for a reader, at what is visible or at an older revision.
    pub(crate) fn range(&self, request: &RangeRequest) -> FlatResult<(RangeResponse, u64)> {
        self.check_revision(request.revision, self.visible)?;
        let revision = if request.revision == 0 { self.visible } else { request.revision };
        Ok((self.range_at(request, revision), self.visible))
    }

    pub(super) fn check_revision(&self, revision: u64, newest: u64) -> FlatResult<()> {
        if revision == 0 {
            return Ok(());
        }
        if revision > newest {
            return Err(FlatError::Future(newest));
        }
        if revision < self.compacted {
            return Err(FlatError::Compacted(self.compacted));
        }
        Ok(())
    }

    pub(super) fn range_at(&self, request: &RangeRequest, revision: u64) -> RangeResponse {
        if request.count_only {
            return RangeResponse { count: self.count_at(&request.keys, revision), ..RangeResponse::default() };
        }
        if request.skip_count
            && request.sort.by == SortBy::Created
            && let Some(found) = self.range_by_creation(request, revision)
        {
            return found;
        }
        let by_key = request.sort.by == SortBy::Key && !request.sort.descending;
        let limit = if request.limit == 0 { usize::MAX } else { request.limit };
        let mut response = RangeResponse::default();
        for slot in self.slots(&request.keys) {
            let Some(record) = slot.at(revision) else { continue };
            response.count += 1;
            if !within(request, record) {
                continue;
            }
            if by_key && response.records.len() == limit {
                response.more = true;
                if request.skip_count {
                    break;
                }
                continue;
            }
            response.records.push(record.clone());
        }
        if !by_key {
            sort(&mut response.records, request);
            response.more = response.records.len() > limit;
            response.records.truncate(limit);
        }
        strip_values(&mut response, request);
        response
    }

    /// The range of one parent by creation, through the index: the cost is what is returned, not what the dir holds.
    /// `None` if the range is something else.
    fn range_by_creation(&self, request: &RangeRequest, revision: u64) -> Option<RangeResponse> {
        let parent = self.whole_parent(&request.keys)?;
        let limit = if request.limit == 0 { usize::MAX } else { request.limit };
        let mut response = RangeResponse::default();
        let Some(parent) = parent else { return Some(response) };
        let least = |created: u64| (created, Arc::from(&[][..]));
        let start: Bound<(u64, Arc<[u8]>)> = Included(least(request.created.0));
        let end = if request.created.1 == 0 { Unbounded } else { Excluded(least(request.created.1 + 1)) };
        if request.created.1 != 0 && request.created.0 > request.created.1 {
            return Some(response);
        }
        let mut entries = parent.by_creation.range((start, end));
        while let Some((created, key)) = if request.sort.descending { entries.next_back() } else { entries.next() } {
            let record = self.keys.get(key).and_then(|slot| slot.at(revision));
            let Some(record) = record.filter(|record| record.created == *created) else { continue };
            response.count += 1;
            if !within(request, record) {
                continue;
            }
            if response.records.len() == limit {
                response.more = true;
                break;
            }
            response.records.push(record.clone());
        }
        strip_values(&mut response, request);
        Some(response)
    }

    /// The parent that a range consists of: `Some(None)` if it is empty, `None` if the range is anything else.
    fn whole_parent(&self, keys: &KeyRange) -> Option<Option<&Parent>> {
        if !keys.start.ends_with(b"/") || *keys != KeyRange::prefix(keys.start.clone()) {
            return None;
        }
        let inside = (Included(&keys.start[..]), Excluded(&keys.end[..]));
        let mut parents = self.parents.range::<[u8], _>(inside);
        match (parents.next(), parents.next()) {
            (None, _) => Some(None),
            (Some((path, parent)), None) if path[..] == keys.start => Some(Some(parent)),
            // Keys of foreign making may lie deeper.
            _ => None,
        }
    }

    fn count_at(&self, keys: &KeyRange, revision: u64) -> u64 {
        if revision == WORKING
            && let Some(parent) = self.whole_parent(keys)
        {
            return parent.map_or(0, |parent| parent.live);
        }
        self.slots(keys).filter(|slot| slot.at(revision).is_some()).count() as u64
    }

    pub(super) fn slots(&self, keys: &KeyRange) -> Box<dyn Iterator<Item = &Slot> + '_> {
        if keys.is_one() {
            return Box::new(self.keys.get(&keys.start[..]).into_iter());
        }
        let end = if keys.end[..] == [0] { Unbounded } else { Excluded(&keys.end[..]) };
        if matches!(end, Excluded(end) if end <= &keys.start[..]) {
            return Box::new(std::iter::empty());
        }
        Box::new(self.keys.range::<[u8], _>((Included(&keys.start[..]), end)).map(|(_, slot)| slot))
    }

    pub(super) fn current(&self, key: &[u8]) -> Option<&Arc<Record>> {
        self.keys.get(key)?.at(WORKING)
    }

    /// The parents that start with `prefix`, after `after`, with a visible key.
    pub(crate) fn parents_from(&self, prefix: &[u8], after: &[u8], limit: usize) -> Vec<Bytes> {
        let start = if after > prefix { Excluded(after) } else { Included(prefix) };
        self.parents
            .range::<[u8], _>((start, Unbounded))
            .take_while(|(parent, _)| parent.starts_with(prefix))
            .filter(|(_, parent)| {
                parent
                    .by_creation
                    .iter()
                    .any(|(_, key)| self.keys.get(key).is_some_and(|slot| slot.at(self.visible).is_some()))
            })
            .take(limit)
            .map(|(parent, _)| Bytes::copy_from_slice(parent))
            .collect()
    }
}

fn within(request: &RangeRequest, record: &Record) -> bool {
    let inside = |(low, high): (u64, u64), value: u64| value >= low && (high == 0 || value <= high);
    inside(request.modified, record.modified) && inside(request.created, record.created)
}

fn sort(records: &mut [Arc<Record>], request: &RangeRequest) {
    // Records come in key order and the sort is stable, so ties stay in key order, also when descending.
    let ordered = |a: &Arc<Record>, b: &Arc<Record>| match request.sort.by {
        SortBy::Key => a.key.cmp(&b.key),
        SortBy::Version => a.version.cmp(&b.version),
        SortBy::Created => a.created.cmp(&b.created),
        SortBy::Modified => a.modified.cmp(&b.modified),
        SortBy::Value => a.value.cmp(&b.value),
    };
    if request.sort.descending {
        records.sort_by(|a, b| ordered(b, a));
    } else {
        records.sort_by(ordered);
    }
}

fn strip_values(response: &mut RangeResponse, request: &RangeRequest) {
    if request.keys_only {
        for record in &mut response.records {
            Arc::make_mut(record).value = Bytes::new();
        }
    }
}
