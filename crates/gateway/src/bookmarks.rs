//! Places in logs that readers have passed, so that one who comes back is read on from there and not from the beginning of the log.
//! A bounded memory, one for each protocol. Where no place is remembered the log is read from its beginning.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use covey_domain::{TaskId, caps};
use parking_lot::Mutex;

/// Entries of a log between two places.
const EVERY: u64 = 1_024;

/// Whether the place behind this entry is one that is kept.
pub(crate) fn is_kept(seq: u64) -> bool {
    seq.is_multiple_of(EVERY)
}

/// Places by task and number of the entry. `T` is what a protocol's frames behind a place depend on. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Bookmarks<T>(Arc<Mutex<Kept<T>>>);

#[derive(Debug)]
struct Kept<T> {
    by_task: HashMap<TaskId, BTreeMap<u64, T>>,
    /// Oldest first.
    order: VecDeque<(TaskId, u64)>,
}

impl<T> Default for Bookmarks<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Kept { by_task: HashMap::new(), order: VecDeque::new() })))
    }
}

impl<T: Clone> Bookmarks<T> {
    /// Keeps the place behind entry `seq`.
    pub fn keep(&self, task: &TaskId, seq: u64, place: T) {
        let mut kept = self.0.lock();
        if kept.by_task.entry(task.clone()).or_default().insert(seq, place).is_some() {
            return;
        }
        kept.order.push_back((task.clone(), seq));
        if kept.order.len() > caps::BOOKMARKS_MAX
            && let Some((task, seq)) = kept.order.pop_front()
            && let Some(places) = kept.by_task.get_mut(&task)
        {
            places.remove(&seq);
            if places.is_empty() {
                kept.by_task.remove(&task);
            }
        }
    }

    /// The last place that is not behind entry `seq`.
    pub fn before(&self, task: &TaskId, seq: u64) -> Option<T> {
        self.0.lock().by_task.get(task)?.range(..=seq).next_back().map(|(_, place)| place.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_place_is_found_and_the_oldest_are_forgotten() {
        let (bookmarks, task) = (Bookmarks::default(), TaskId::from("t"));
        for seq in [EVERY, 3 * EVERY, 3 * EVERY] {
            bookmarks.keep(&task, seq, seq);
        }
        let near = |seq| bookmarks.before(&task, seq);
        assert_eq!((near(EVERY - 1), near(EVERY), near(3 * EVERY - 1)), (None, Some(EVERY), Some(EVERY)));
        assert_eq!(near(u64::MAX), Some(3 * EVERY));
        for n in 0..caps::BOOKMARKS_MAX as u64 {
            bookmarks.keep(&TaskId::from(n.to_string()), EVERY, EVERY);
        }
        assert_eq!(near(u64::MAX), None);
        assert_eq!(bookmarks.0.lock().order.len(), caps::BOOKMARKS_MAX);
        assert_eq!(bookmarks.0.lock().by_task.len(), caps::BOOKMARKS_MAX);
    }
}
