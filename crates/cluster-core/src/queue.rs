//! Tasks that wait for an actor, in order, by agent. Every change costs a few steps in an ordered map, however many wait.

use std::collections::BTreeMap;

use covey_domain::{AgentName, TaskId};
use hashbrown::HashMap;

/// A place in a queue: it grows to the back.
pub(crate) type Place = i64;

/// All queues. A task is in one of them at most.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    /// No queue is empty.
    by_agent: BTreeMap<AgentName, BTreeMap<Place, TaskId>>,
    places: HashMap<TaskId, Place>,
}

impl Queues {
    /// Tasks in all queues.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Agents with tasks that wait, and how many.
    pub fn waiting(&self) -> impl Iterator<Item = (&AgentName, usize)> {
        self.by_agent.iter().map(|(agent, queue)| (agent, queue.len()))
    }

    pub fn waiting_for(&self, agent: &AgentName) -> usize {
        self.by_agent.get(agent).map_or(0, BTreeMap::len)
    }

    /// Tasks of an agent that wait, the next first.
    pub fn of(&self, agent: &AgentName) -> impl Iterator<Item = &TaskId> {
        self.by_agent.get(agent).into_iter().flat_map(BTreeMap::values)
    }

    pub fn push_back(&mut self, agent: &AgentName, task: TaskId) {
        self.insert(agent, task, |queue| queue.last_key_value().map_or(0, |(last, _)| last + 1));
    }

    pub fn push_front(&mut self, agent: &AgentName, task: TaskId) {
        self.insert(agent, task, |queue| queue.first_key_value().map_or(0, |(first, _)| first - 1));
    }

    fn insert(&mut self, agent: &AgentName, task: TaskId, place: impl Fn(&BTreeMap<Place, TaskId>) -> Place) {
        self.remove(agent, &task);
        let queue = self.by_agent.entry(agent.clone()).or_default();
        let place = place(queue);
        queue.insert(place, task.clone());
        self.places.insert(task, place);
    }

    /// Takes the first.
    pub fn pop(&mut self, agent: &AgentName) -> Option<TaskId> {
        let first = self.first(agent)?.1.clone();
        self.remove(agent, &first);
        Some(first)
    }

    /// The first, and its place.
    pub fn first(&self, agent: &AgentName) -> Option<(Place, &TaskId)> {
        self.by_agent.get(agent)?.first_key_value().map(|(place, task)| (*place, task))
    }

    /// The place of the last.
    pub fn last(&self, agent: &AgentName) -> Option<Place> {
        self.by_agent.get(agent)?.last_key_value().map(|(place, _)| *place)
    }

    /// Takes a task out, where it waits.
    pub fn remove(&mut self, agent: &AgentName, task: &TaskId) {
        let Some(place) = self.places.remove(task) else { return };
        if let Some(queue) = self.by_agent.get_mut(agent) {
            queue.remove(&place);
            if queue.is_empty() {
                self.by_agent.remove(agent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_come_in_order_but_for_those_put_in_front_and_those_taken_out() {
        let (a, b) = (AgentName::from("a"), AgentName::from("b"));
        let mut queues = Queues::default();
        for id in ["1", "2", "3"] {
            queues.push_back(&a, id.into());
        }
        queues.push_front(&a, "0".into());
        queues.push_back(&b, "9".into());
        queues.remove(&a, &"2".into());
        queues.remove(&a, &"2".into());
        assert_eq!((queues.len(), queues.waiting_for(&a)), (4, 3));
        let taken: Vec<_> = std::iter::from_fn(|| queues.pop(&a)).collect();
        assert_eq!(taken, ["0".into(), "1".into(), "3".into()]);
        assert_eq!(queues.waiting().map(|(agent, n)| (agent.as_str(), n)).collect::<Vec<_>>(), [("b", 1)]);
    }
}
