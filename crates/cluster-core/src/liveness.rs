//! Who counts as alive: hellos, beats, broken links, proofs of death, and the judgement when a lease has passed.
//!
//! The rule that makes it safe: the work of a node is given to others only when the node has let go of it
//! ([`Head::let_go`]), when its process is proven to be over ([`Head::gone`]), or when its lease has passed, which by the
//! node's own clock it did earlier ([`crate::lease`]). A broken link proves nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use covey_domain::{Error, ErrorKind, Millis, NodeId};

use crate::{
    head::{Head, Output, Write},
    link::Inbox,
    membership::{Hello, Member, Node, NodeState, RESERVED_LABELS},
};

/// The head itself stood still when its ticks are this far apart; it then judges nobody by that time.
const STALL_MS: Millis = 1_000;
/// Nodes that are over and are still shown, the newest.
const DEAD_NODES_MAX: usize = 256;

/// What the head knows of its members beside the nodes themselves.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    /// Members of before a restart that have not come back yet, and until when they are waited for.
    pub expected: BTreeMap<NodeId, Member>,
    /// The leases that an earlier head gave have passed by then.
    pub recover_until: Option<Millis>,
    last_tick: Option<Millis>,
    /// Nodes that are over, oldest first.
    dead: VecDeque<NodeId>,
}

impl Head {
    /// A worker says hello. Gives up to where its entries are durable, or refuses it while another process of its name may act.
    pub fn joined(&mut self, id: &NodeId, conn: u64, mut hello: Hello, now: Millis) -> Result<u64, Error> {
        self.refuse_claims(id, &hello)?;
        self.refuse_twins(id, hello.incarnation, now)?;
        let number = self.cursors.get(&(id.clone(), hello.incarnation)).copied().unwrap_or(0);
        let actors = std::mem::take(&mut hello.actors);
        let held = std::mem::take(&mut hello.tasks);
        let old = self.nodes.remove(id);
        let same = old.as_ref().is_some_and(|n| n.state != NodeState::Dead);
        let member = Member { incarnation: hello.incarnation, port: hello.port.clone() };
        let mut node = Node {
            free: hello.total.clone(),
            owed_cpu_milli: 0,
            state: NodeState::Live { until: now + self.config.lease_ms },
            conn,
            inbox: Inbox::resumed(number),
            actors: BTreeSet::new(),
            blobs: BTreeSet::new(),
            tasks_done: old.as_ref().map_or(0, |n| n.tasks_done),
            draining: old.as_ref().is_some_and(|n| n.draining) && same,
            hello,
        };
        if let Some(old) = old.filter(|_| same) {
            (node.blobs, node.actors, node.free) = (old.blobs, old.actors, old.free);
            node.owed_cpu_milli = old.owed_cpu_milli;
        }
        self.nodes.insert(id.clone(), node);
        self.liveness.dead.retain(|dead| dead != id);
        self.out.push_back(Output::Write(Write::Member(id.clone(), Some(member))));
        self.refresh(id);
        self.reconcile(id, &actors, &held, now);
        self.came_back(id, now);
        self.unplanned = true;
        self.settle(now);
        Ok(number)
    }

    /// What a node is called is asked for by name, in a label and when it is emptied: one node cannot stand in for another.
    fn refuse_claims(&self, id: &NodeId, hello: &Hello) -> Result<(), Error> {
        if let Some(key) = hello.labels.keys().find(|key| RESERVED_LABELS.contains(&key.as_str())) {
            return Err(Error::invalid(format!("the label `{key}` says which node it is, and cannot be claimed"))
                .hint("give it another name; `--name` sets `node`"));
        }
        let name = &hello.name;
        let takes = |other: &NodeId, node: &Node| {
            other != id && (other.as_str() == name || (node.hello.name == *name && node.expires().is_some()))
        };
        if let Some((other, _)) = self.nodes.iter().find(|(other, node)| takes(other, node)) {
            let what = format!("worker `{other}` is called `{name}` already");
            return Err(Error::new(ErrorKind::AlreadyExists, what).hint("give one of the two another `--name`"));
        }
        Ok(())
    }

    /// Two processes with one name would both run what is given to that name.
    fn refuse_twins(&self, id: &NodeId, incarnation: u64, now: Millis) -> Result<(), Error> {
        let taken = |what: String, until: Millis| {
            let left = until.saturating_sub(now).div_ceil(1_000);
            Err(Error::new(ErrorKind::AlreadyExists, what).hint(format!(
                "give one of the two another `--name`; if the other one is over, its lease ends in {left} s"
            )))
        };
        if let Some(node) = self.nodes.get(id).filter(|n| n.hello.incarnation != incarnation)
            && let Some(until) = node.expires()
        {
            let state = if node.is_live() { "is linked" } else { "may still act" };
            let (name, pid) = (&node.hello.name, node.hello.pid);
            return taken(format!("another process of worker `{name}` (pid {pid}) {state}"), until);
        }
        let earlier = self.liveness.expected.get(id).is_some_and(|member| member.incarnation != incarnation);
        if earlier && let Some(until) = self.liveness.recover_until {
            return taken(format!("an earlier process of worker `{id}` may still act"), until);
        }
        Ok(())
    }

    /// A beat or anything else arrived over a link: the node's lease is renewed. `false`: this link is over, and whoever speaks
    /// over it must stop and say hello anew.
    pub fn heard(&mut self, id: &NodeId, conn: u64, now: Millis) -> bool {
        let lease_ms = self.config.lease_ms;
        match self.nodes.get_mut(id) {
            Some(node) if node.conn == conn && node.is_live() => {
                node.state = NodeState::Live { until: now + lease_ms };
                true
            }
            _ => false,
        }
    }

    /// A link broke. Only the link that is current counts. The node keeps what it has until its lease has passed.
    pub fn unlinked(&mut self, id: &NodeId, conn: u64) {
        if let Some(node) = self.nodes.get_mut(id).filter(|n| n.conn == conn)
            && let NodeState::Live { until } = node.state
        {
            node.state = NodeState::Suspect { until };
            self.placer.remove(id);
        }
    }

    /// A worker has stopped everything it had and leaves.
    pub fn let_go(&mut self, id: &NodeId, conn: u64, now: Millis) {
        if self.nodes.get(id).is_some_and(|n| n.conn == conn) {
            self.node_died(id, "has left", now);
            self.settle(now);
        }
    }

    /// The process of a node that has no link is proven to be over.
    pub fn gone(&mut self, id: &NodeId, incarnation: u64, now: Millis) {
        let is = |n: &Node| n.hello.incarnation == incarnation && matches!(n.state, NodeState::Suspect { .. });
        if self.nodes.get(id).is_some_and(is) {
            self.node_died(id, "was lost", now);
        } else if self.liveness.expected.get(id).is_some_and(|member| member.incarnation == incarnation) {
            self.out.push_back(Output::Write(Write::Member(id.clone(), None)));
            self.came_back(id, now);
        }
        self.settle(now);
    }

    /// Judges by the clock who is over. A head that stood still adds that time to every lease: what its nodes sent meanwhile
    /// waits to be read.
    pub(crate) fn judge(&mut self, now: Millis) {
        let since = self.liveness.last_tick.replace(now).map_or(0, |last| now.saturating_sub(last));
        if since > STALL_MS {
            self.nodes.values_mut().for_each(|node| node.extend(since));
            self.sessions.extend(since);
            self.liveness.recover_until = self.liveness.recover_until.map(|until| until + since);
        }
        let over = |n: &Node| n.expires().is_some_and(|until| until <= now);
        let expired: Vec<_> = self.nodes.iter().filter(|(_, n)| over(n)).map(|(id, _)| id.clone()).collect();
        for id in expired {
            self.node_died(&id, "was lost", now);
        }
    }

    fn node_died(&mut self, id: &NodeId, how: &str, now: Millis) {
        let Some(node) = self.nodes.get_mut(id).filter(|n| n.state != NodeState::Dead) else { return };
        node.state = NodeState::Dead;
        self.placer.remove(id);
        let conn = node.conn;
        let actors = std::mem::take(&mut node.actors);
        self.out.push_back(Output::Drop(id.clone(), conn));
        self.out.push_back(Output::Write(Write::Member(id.clone(), None)));
        for actor in actors {
            let error = Error::new(ErrorKind::ActorDied, format!("worker `{id}` {how}")).executed(None);
            self.actor_lost(&actor, error, true, now);
        }
        self.liveness.dead.push_back(id.clone());
        if self.liveness.dead.len() > DEAD_NODES_MAX
            && let Some(oldest) = self.liveness.dead.pop_front()
        {
            self.nodes.remove(&oldest);
        }
        self.unplanned = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeadConfig;

    fn head() -> Head {
        Head::new(HeadConfig::default(), 1)
    }

    fn hello(incarnation: u64) -> Hello {
        Hello { incarnation, name: "w".into(), pid: 7, ..Hello::default() }
    }

    fn state(head: &Head) -> String {
        head.status().nodes[0].state.clone()
    }

    fn ticks(head: &mut Head, from: Millis, to: Millis) {
        for now in (from..=to).step_by(50) {
            head.tick(now);
        }
    }

    #[test]
    fn a_broken_link_proves_nothing_and_a_proof_does() {
        let (mut head, node) = (head(), NodeId::from("n"));
        head.joined(&node, 1, hello(1), 0).expect("a first hello");
        head.unlinked(&node, 1);
        ticks(&mut head, 0, 9_950);
        assert_eq!(state(&head), "suspect");
        head.gone(&node, 2, 9_950);
        assert_eq!(state(&head), "suspect", "the proof is of another process");
        head.gone(&node, 1, 9_950);
        assert_eq!(state(&head), "dead");
        assert!(!head.heard(&node, 1, 9_960), "what it still sends renews nothing");
    }

    #[test]
    fn a_head_that_stood_still_judges_nobody_by_that_time() {
        let (mut head, node) = (head(), NodeId::from("n"));
        head.joined(&node, 1, hello(1), 0).expect("a first hello");
        head.tick(0);
        head.tick(60_000);
        assert_eq!(state(&head), "live");
        ticks(&mut head, 60_000, 70_000);
        assert_eq!(state(&head), "dead", "but by the time after it");
    }

    #[test]
    fn a_second_process_of_a_name_is_told_so() {
        let (mut head, node) = (head(), NodeId::from("n"));
        head.joined(&node, 1, hello(1), 0).expect("a first hello");
        let error = head.joined(&node, 2, hello(2), 10).expect_err("a twin");
        assert_eq!(error.kind, ErrorKind::AlreadyExists);
        assert!(error.message.contains("pid 7"), "{error:?}");
        assert!(head.heard(&node, 1, 20), "the first one is not touched by that");
        head.joined(&node, 3, hello(1), 30).expect("the same process over another link");
        assert!(!head.heard(&node, 1, 40), "its older link is over");
        head.let_go(&node, 3, 50);
        head.joined(&node, 4, hello(2), 60).expect("the name is free");
    }

    #[test]
    fn one_node_cannot_stand_in_for_another() {
        let (mut head, first, second) = (head(), NodeId::from("n"), NodeId::from("m"));
        head.joined(&first, 1, hello(1), 0).expect("a first hello");
        let error = head.joined(&second, 2, hello(2), 10).expect_err("its name is another's");
        assert_eq!(error.kind, ErrorKind::AlreadyExists);
        let named = |name: &str| Hello { name: name.into(), ..hello(2) };
        head.joined(&second, 2, named("n"), 10).expect_err("its name is another's id");
        for key in RESERVED_LABELS {
            let labels = BTreeMap::from([(key.to_owned(), "w".to_owned())]);
            let error =
                head.joined(&second, 2, Hello { labels, ..named("v") }, 20).expect_err("it says that it is `w`");
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
        }
        head.joined(&second, 2, named("v"), 30).expect("a name of its own");
        let view = head.nodes[&second].view(&second);
        assert_eq!((view.labels["node"].as_str(), view.labels["node_id"].as_str()), ("v", "m"));
        head.let_go(&first, 1, 40);
        head.joined(&NodeId::from("o"), 3, hello(3), 50).expect("the name is free again");
    }

    #[test]
    fn what_came_from_an_earlier_head_is_waited_for() {
        let (mut head, node) = (head(), NodeId::from("n"));
        head.restore_member(node.clone(), Member { incarnation: 1, port: String::new() }, 0);
        assert!(head.joined(&node, 1, hello(2), 10).is_err(), "the earlier process may still act");
        head.gone(&node, 1, 20);
        head.joined(&node, 1, hello(2), 30).expect("it is proven to be over");
    }
}
