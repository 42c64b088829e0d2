//! Bodies of records and jobs: they stay in the log where they were written, and are found by address. What was written
//! or read last is kept in memory; for `memory:`, everything is.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use coact_core::{Error, ErrorKind, Result, env::Env};
use parking_lot::Mutex;

use crate::log::Reader;

/// Where a body is: the address of its checksum in the log, and its own length.
///
/// Addresses count the bytes of all batches ever written, without the headers of segments: they say nothing of files,
/// and stay as they are when files go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) address: u64,
    pub(crate) length: u32,
}

/// Bytes of recent bodies that are kept in memory.
const RECENT_BYTES: usize = 64 * 1024 * 1024;
/// About what keeping a body costs beside its bytes: of small ones, most.
const RECENT_OVERHEAD: usize = 192;

/// All bodies.
pub(crate) struct Bodies {
    /// None for `memory:`, where recent is everything.
    reader: Option<Reader>,
    recent: Mutex<Recent>,
}

impl std::fmt::Debug for Bodies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bodies").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Recent {
    bodies: HashMap<u64, Bytes>,
    order: VecDeque<u64>,
    bytes: usize,
}

impl Bodies {
    pub(crate) fn new(reader: Option<Reader>) -> Self {
        Self { reader, recent: Mutex::default() }
    }

    /// Takes note of a body that is being written.
    pub(crate) fn add(&self, place: Place, body: Bytes) {
        let mut recent = self.recent.lock();
        recent.bytes += body.len() + RECENT_OVERHEAD;
        recent.bodies.insert(place.address, body);
        if self.reader.is_none() {
            return;
        }
        recent.order.push_back(place.address);
        while recent.bytes > RECENT_BYTES
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.remove(oldest);
        }
    }

    /// Forgets a body that nothing names any more.
    pub(crate) fn remove(&self, place: Place) {
        if self.reader.is_none() {
            self.recent.lock().remove(place.address);
        }
    }

    /// Reads bodies, verified; `None` for one that went meanwhile. Their order is kept.
    pub(crate) async fn get(self: &Arc<Self>, env: &Env, places: &[Place]) -> Result<Vec<Option<Bytes>>> {
        let mut found: Vec<_> = {
            let recent = self.recent.lock();
            places.iter().map(|place| recent.bodies.get(&place.address).cloned()).collect()
        };
        if self.reader.is_none() || found.iter().all(Option::is_some) {
            return Ok(found);
        }
        let missing: Vec<_> =
            places.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(place, _)| *place).collect();
        let bodies = self.clone();
        let read = env.blocking(move || bodies.read(&missing)).await;
        let mut read = read
            .unwrap_or_else(|| Err(Error::new(ErrorKind::Internal, "reading from the log ended without an answer")))?
            .into_iter();
        for slot in found.iter_mut().filter(|slot| slot.is_none()) {
            *slot = read.next().flatten();
        }
        Ok(found)
    }

    /// Reads from the log, places near one another at once.
    fn read(&self, places: &[Place]) -> Result<Vec<Option<Bytes>>> {
        let Some(reader) = &self.reader else { return Ok(vec![None; places.len()]) };
        reader.read(places)
    }
}

impl Recent {
    fn remove(&mut self, address: u64) {
        if let Some(body) = self.bodies.remove(&address) {
            self.bytes -= body.len() + RECENT_OVERHEAD;
        }
    }
}
