//! Events on their way to the outbox: those of one attempt share an entry, up to a bound, so that what one task says does not stand
//! before what others say. Pure.

use std::collections::HashMap;

use covey_domain::{TaskEvent, TaskId, caps};

/// Entries in the order of their first events; `A` counts what is ahead of the head's disk.
pub(crate) struct OpenEntries<A> {
    entries: Vec<Entry<A>>,
    /// The newest entry of an attempt.
    at: HashMap<(TaskId, u32), usize>,
}

struct Entry<A> {
    task: TaskId,
    attempt: u32,
    events: Vec<TaskEvent>,
    bytes: usize,
    ahead: A,
}

impl<A> Default for OpenEntries<A> {
    fn default() -> Self {
        Self { entries: Vec::new(), at: HashMap::new() }
    }
}

impl<A> Entry<A> {
    fn is_of(&self, task: &TaskId, attempt: u32) -> bool {
        (&self.task, self.attempt) == (task, attempt)
    }
}

impl<A> OpenEntries<A> {
    /// Puts events behind those of the same attempt; `join` puts what is counted of them together.
    pub fn push(&mut self, task: TaskId, attempt: u32, events: Vec<TaskEvent>, ahead: A, join: impl FnOnce(&mut A, A)) {
        let bytes: usize = events.iter().map(TaskEvent::weight).sum();
        let next = self.entries.len();
        // Most are of the attempt that spoke last.
        let at = match self.entries.last() {
            Some(last) if last.is_of(&task, attempt) => next - 1,
            _ => *self.at.entry((task.clone(), attempt)).or_insert(next),
        };
        match self.entries.get_mut(at) {
            Some(open) if open.bytes + bytes <= caps::ENTRY_BYTES_MAX => {
                open.events.extend(events);
                open.bytes += bytes;
                join(&mut open.ahead, ahead);
            }
            _ => {
                self.at.insert((task.clone(), attempt), next);
                self.entries.push(Entry { task, attempt, events, bytes, ahead });
            }
        }
    }

    /// All entries; none is left.
    pub fn take(&mut self) -> impl Iterator<Item = (TaskId, u32, Vec<TaskEvent>, A)> {
        self.at.clear();
        std::mem::take(&mut self.entries).into_iter().map(|e| (e.task, e.attempt, e.events, e.ahead))
    }
}

#[cfg(test)]
mod tests {
    use covey_domain::event::Delta;

    use super::*;

    fn said(text: &str) -> Vec<TaskEvent> {
        vec![TaskEvent::PartDelta { part: "p".into(), delta: Delta::Text(text.to_owned()) }]
    }

    fn texts(events: &[TaskEvent]) -> Vec<&str> {
        let text = |event| match event {
            &TaskEvent::PartDelta { delta: Delta::Text(ref text), .. } => text.as_str(),
            _ => "",
        };
        events.iter().map(text).collect()
    }

    #[test]
    fn events_of_one_attempt_share_an_entry_and_order_is_kept() {
        let mut open = OpenEntries::default();
        for (task, attempt, text) in [("a", 1, "1"), ("a", 1, "2"), ("b", 1, "3"), ("a", 1, "4"), ("a", 2, "5")] {
            open.push(task.into(), attempt, said(text), 1, |all, more| *all += more);
        }
        let taken: Vec<_> = open.take().collect();
        let shown: Vec<_> = taken.iter().map(|(t, n, events, ahead)| (t.as_str(), *n, texts(events), *ahead)).collect();
        assert_eq!(shown, [("a", 1, vec!["1", "2", "4"], 3), ("b", 1, vec!["3"], 1), ("a", 2, vec!["5"], 1)]);
        assert_eq!(open.take().count(), 0);
    }

    #[test]
    fn an_entry_has_a_bound_and_the_next_one_takes_what_follows() {
        let mut open = OpenEntries::default();
        let half = "x".repeat(caps::ENTRY_BYTES_MAX / 2 - 300);
        let whole = "x".repeat(2 * caps::ENTRY_BYTES_MAX);
        for (task, text) in
            [("a", &*half), ("b", "1"), ("a", "2"), ("a", &half), ("a", "3"), ("b", "4"), ("a", &whole), ("a", "5")]
        {
            open.push(task.into(), 1, said(text), 1, |all, more| *all += more);
        }
        let entries: Vec<_> = open.take().collect();
        let shown: Vec<_> =
            entries.iter().map(|(task, _, events, ahead)| (task.as_str(), events.len(), *ahead)).collect();
        assert_eq!(shown, [("a", 2, 2), ("b", 2, 2), ("a", 2, 2), ("a", 1, 1), ("a", 1, 1)]);
    }
}
