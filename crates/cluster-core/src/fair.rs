//! Tasks that wait for a turn of their agent's actors, so that no caller stands in the way of the others.
//!
//! Each agent has a queue for each caller, and the callers take turns: whoever sends ten thousand requests waits behind
//! itself, and somebody else's first request is the next but one. Within a caller the order is that of arrival; a task whose
//! attempt was lost goes before those. What a caller has waiting, running and asking is counted, in tasks and in bytes, and
//! bounded ([`Load::admit`]): one caller cannot take the whole queue.

use std::collections::{BTreeMap, VecDeque};

use covey_domain::{AgentName, CallerId, Error, ErrorKind, TaskId, caps};
use hashbrown::HashMap;

/// A task's place in the queue of its agent and caller.
pub(crate) type Ticket = i64;

#[derive(Debug, Default)]
struct Lane {
    /// In the order of their turn.
    tasks: BTreeMap<Ticket, TaskId>,
}

/// The queue of one agent.
#[derive(Debug, Default)]
struct AgentQueue {
    callers: HashMap<CallerId, Lane>,
    /// Callers that have something waiting, the next first.
    ring: VecDeque<CallerId>,
    count: usize,
}

/// All tasks that wait.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    agents: BTreeMap<AgentName, AgentQueue>,
    count: usize,
    /// Above and below all tickets that were given.
    last: Ticket,
    first: Ticket,
}

impl FairQueue {
    /// Tasks that wait, over all agents.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Agents that tasks wait for, and how many.
    pub fn waiting(&self) -> impl Iterator<Item = (&AgentName, usize)> {
        self.agents.iter().map(|(agent, queue)| (agent, queue.count))
    }

    /// Tasks that wait for this agent.
    pub fn waiting_for(&self, agent: &AgentName) -> usize {
        self.agents.get(agent).map_or(0, |queue| queue.count)
    }

    /// All tasks that wait for this agent: each caller's in the order they came.
    pub fn of(&self, agent: &AgentName) -> impl Iterator<Item = &TaskId> {
        self.agents.get(agent).into_iter().flat_map(|queue| queue.callers.values()).flat_map(|lane| lane.tasks.values())
    }

    /// The last ticket that was given.
    pub fn last(&self) -> Ticket {
        self.last
    }

    /// Some task of this agent whose ticket was given by then.
    pub fn first_up_to(&self, agent: &AgentName, last: Ticket) -> Option<&TaskId> {
        let firsts = self.agents.get(agent)?.callers.values().filter_map(|lane| lane.tasks.first_key_value());
        firsts.min_by_key(|(ticket, _)| **ticket).filter(|(ticket, _)| **ticket <= last).map(|(_, task)| task)
    }

    /// Behind all that this caller has waiting for the agent.
    pub fn push_back(&mut self, agent: &AgentName, caller: &CallerId, task: TaskId) -> Ticket {
        self.last += 1;
        self.insert(agent, caller, task, self.last)
    }

    /// Before all that this caller has waiting for the agent: it had its turn, and lost it.
    pub fn push_front(&mut self, agent: &AgentName, caller: &CallerId, task: TaskId) -> Ticket {
        self.first -= 1;
        self.insert(agent, caller, task, self.first)
    }

    fn insert(&mut self, agent: &AgentName, caller: &CallerId, task: TaskId, ticket: Ticket) -> Ticket {
        let queue = self.agents.entry(agent.clone()).or_default();
        let lane = queue.callers.entry(caller.clone()).or_insert_with(|| {
            queue.ring.push_back(caller.clone());
            Lane::default()
        });
        lane.tasks.insert(ticket, task);
        queue.count += 1;
        self.count += 1;
        ticket
    }

    /// The next task of this agent: of the caller whose turn it is, the oldest.
    pub fn pop(&mut self, agent: &AgentName) -> Option<TaskId> {
        let queue = self.agents.get_mut(agent)?;
        let caller = queue.ring.pop_front()?;
        let lane = queue.callers.get_mut(&caller)?;
        let (_, task) = lane.tasks.pop_first()?;
        if lane.tasks.is_empty() {
            queue.callers.remove(&caller);
        } else {
            queue.ring.push_back(caller);
        }
        queue.count -= 1;
        self.count -= 1;
        if queue.count == 0 {
            self.agents.remove(agent);
        }
        Some(task)
    }

    /// A task does not wait any more. `false`: it did not.
    pub fn remove(&mut self, agent: &AgentName, caller: &CallerId, ticket: Ticket) -> bool {
        let Some(queue) = self.agents.get_mut(agent) else { return false };
        let Some(lane) = queue.callers.get_mut(caller) else { return false };
        if lane.tasks.remove(&ticket).is_none() {
            return false;
        }
        if lane.tasks.is_empty() {
            queue.callers.remove(caller);
            queue.ring.retain(|c| c != caller);
        }
        queue.count -= 1;
        self.count -= 1;
        if queue.count == 0 {
            self.agents.remove(agent);
        }
        true
    }
}

/// What each caller has in the cluster that has not ended.
#[derive(Debug, Default)]
pub(crate) struct Load {
    callers: HashMap<CallerId, Held>,
    bytes: usize,
}

/// Tasks of a caller that have not ended, and the bytes they were asked with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    tasks: usize,
    bytes: usize,
}

impl Load {
    /// Whether one more task of this caller fits, which may have `tasks_max`, with `waiting` tasks in the queue already.
    pub fn admit(&self, caller: &CallerId, bytes: usize, tasks_max: usize, waiting: usize) -> Result<(), Error> {
        let full = |text: String| Err(Error::new(ErrorKind::Overloaded, text).hint("try again later, or add workers"));
        let held = self.callers.get(caller).copied().unwrap_or_default();
        if waiting >= caps::TASK_QUEUE_DEPTH_MAX {
            return full(format!("{waiting} tasks wait already"));
        }
        if held.tasks >= tasks_max {
            return full(format!("{} tasks of `{caller}` have not ended", held.tasks));
        }
        if held.tasks > 0 && held.bytes + bytes > caps::CALLER_TASK_BYTES_MAX {
            let mib = held.bytes >> 20;
            return full(format!("tasks of `{caller}` that have not ended were asked with {mib} MiB"));
        }
        if self.bytes + bytes > caps::TASK_BYTES_MAX {
            return full(format!("tasks that have not ended were asked with {} MiB", self.bytes >> 20));
        }
        Ok(())
    }

    /// A task begins.
    pub fn add(&mut self, caller: &CallerId, bytes: usize) {
        let held = self.callers.entry(caller.clone()).or_default();
        held.tasks += 1;
        held.bytes += bytes;
        self.bytes += bytes;
    }

    /// A task has ended.
    pub fn sub(&mut self, caller: &CallerId, bytes: usize) {
        let Some(held) = self.callers.get_mut(caller) else { return };
        held.tasks -= 1;
        held.bytes -= bytes;
        self.bytes -= bytes;
        if held.tasks == 0 {
            self.callers.remove(caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn task(name: impl std::fmt::Display) -> TaskId {
        TaskId::from(name.to_string())
    }

    #[test]
    fn who_sends_one_request_waits_for_one_of_each_other() {
        let (mut queue, agent) = (FairQueue::default(), AgentName::from("a"));
        for n in 0..10_000 {
            queue.push_back(&agent, &"loud".into(), task(format!("loud-{n}")));
        }
        assert_eq!(queue.pop(&agent), Some(task("loud-0")));
        queue.push_back(&agent, &"quiet".into(), task("quiet"));
        assert_eq!(queue.pop(&agent), Some(task("loud-1")));
        assert_eq!(queue.pop(&agent), Some(task("quiet")));
        assert_eq!(queue.pop(&agent), Some(task("loud-2")));
    }

    #[test]
    fn a_task_that_lost_its_turn_is_its_callers_next() {
        let (mut queue, agent, me) = (FairQueue::default(), AgentName::from("a"), CallerId::from("me"));
        queue.push_back(&agent, &me, task(1));
        queue.push_back(&agent, &me, task(2));
        let lost = queue.pop(&agent).unwrap();
        queue.push_front(&agent, &me, lost);
        assert_eq!([queue.pop(&agent), queue.pop(&agent), queue.pop(&agent)], [Some(task(1)), Some(task(2)), None]);
    }

    #[test]
    fn one_caller_is_refused_and_others_are_not() {
        let (mut load, loud, quiet) = (Load::default(), CallerId::from("loud"), CallerId::from("quiet"));
        for n in 0..caps::CALLER_TASKS_MAX {
            load.admit(&loud, 1, caps::CALLER_TASKS_MAX, n).unwrap();
            load.add(&loud, 1);
        }
        assert_eq!(load.admit(&loud, 1, caps::CALLER_TASKS_MAX, 0).unwrap_err().kind, ErrorKind::Overloaded);
        load.admit(&quiet, 1, 10, 0).unwrap();
        load.sub(&loud, 1);
        load.admit(&loud, 1, caps::CALLER_TASKS_MAX, 0).unwrap();
        // Bytes count as well, and a single task of the largest size always fits.
        let large = caps::CALLER_TASK_BYTES_MAX;
        load.admit(&quiet, large, 10, 0).unwrap();
        load.add(&quiet, large);
        assert_eq!(load.admit(&quiet, 1, 10, 0).unwrap_err().kind, ErrorKind::Overloaded);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Back(u8, u8),
        Front(u8, u8),
        Pop(u8),
        Remove(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..2_u8, 0..4_u8).prop_map(|(a, c)| Step::Back(a, c)),
            1 => (0..2_u8, 0..4_u8).prop_map(|(a, c)| Step::Front(a, c)),
            3 => (0..2_u8).prop_map(Step::Pop),
            1 => (0..64_usize).prop_map(Step::Remove),
        ]
    }

    proptest! {
        /// Nothing is lost or given twice; a caller's tasks come in their order; and between two tasks of one caller no other
        /// caller that waits is passed over.
        #[test]
        fn callers_take_turns(steps in proptest::collection::vec(step(), 1..200)) {
            let mut queue = FairQueue::default();
            // Agent, caller, ticket and task of all that waits.
            let mut waiting: Vec<(u8, u8, Ticket, TaskId)> = Vec::new();
            // Callers that were served since somebody waits, for each who waits: (agent, caller) -> served meanwhile.
            let mut passed: BTreeMap<(u8, u8), Vec<u8>> = BTreeMap::new();
            let (agent, caller) = (|a: u8| AgentName::from(format!("a{a}")), |c: u8| CallerId::from(format!("c{c}")));
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Back(a, c) => {
                        let ticket = queue.push_back(&agent(a), &caller(c), task(n));
                        waiting.push((a, c, ticket, task(n)));
                        passed.entry((a, c)).or_default();
                    }
                    Step::Front(a, c) => {
                        let ticket = queue.push_front(&agent(a), &caller(c), task(n));
                        waiting.push((a, c, ticket, task(n)));
                        passed.entry((a, c)).or_default();
                    }
                    Step::Pop(a) => {
                        let popped = queue.pop(&agent(a));
                        let at = waiting.iter().position(|w| Some(&w.3) == popped.as_ref());
                        prop_assert_eq!(popped.is_some(), waiting.iter().any(|w| w.0 == a));
                        let Some(at) = at else { continue };
                        let (found, c, ticket, _) = waiting.remove(at);
                        prop_assert_eq!(found, a);
                        let older = waiting.iter().any(|w| (w.0, w.1) == (a, c) && w.2 < ticket);
                        prop_assert!(!older, "a caller's tasks keep their order");
                        passed.remove(&(a, c));
                        for ((_, other), served) in passed.range_mut((a, 0)..=(a, u8::MAX)) {
                            prop_assert!(!served.contains(&c), "c{} was served twice while c{} waits", c, other);
                            served.push(c);
                        }
                        if waiting.iter().any(|w| (w.0, w.1) == (a, c)) {
                            passed.insert((a, c), Vec::new());
                        }
                    }
                    Step::Remove(at) if at < waiting.len() => {
                        let (a, c, ticket, _) = waiting.remove(at);
                        prop_assert!(queue.remove(&agent(a), &caller(c), ticket));
                        prop_assert!(!queue.remove(&agent(a), &caller(c), ticket));
                        if !waiting.iter().any(|w| (w.0, w.1) == (a, c)) {
                            passed.remove(&(a, c));
                        }
                    }
                    Step::Remove(_) => {}
                }
                prop_assert_eq!(queue.len(), waiting.len());
                let agents: Vec<_> = queue.waiting().map(|(_, count)| count).collect();
                prop_assert_eq!(agents.iter().sum::<usize>(), waiting.len());
                prop_assert!(agents.iter().all(|count| *count > 0));
            }
        }
    }
}
