//! Room that nobody uses: actors of pools that have nothing to do give theirs to what waits for it.

use std::collections::BTreeMap;

use covey_domain::{ActorId, Error, ErrorKind, Millis, NodeId, Resources};

use crate::{
    directory::{ActorState, Owner},
    head::Head,
    scheduler::Shape,
};

/// Actors of pools without a task, by their nodes.
type Idle = BTreeMap<NodeId, Vec<ActorId>>;

impl Head {
    /// Ends idle actors of pools in whose places something fits that waits. `true` when there were any.
    pub(crate) fn make_room(&mut self, now: Millis) -> bool {
        let idle = self.idle();
        if idle.is_empty() {
            return false;
        }
        let found = self.room_for_one(&idle).or_else(|| self.room_for_a_gang(&idle));
        for id in found.iter().flatten() {
            let why = "it had nothing to do, and others waited for its place";
            self.end_actor(id, Error::new(ErrorKind::ActorDied, why).executed(Some(false)), false, now);
        }
        found.is_some()
    }

    fn idle(&self) -> Idle {
        let mut idle = Idle::new();
        for id in self.directory.pools.values().flatten() {
            if let Some(actor) = self.directory.actors.get(id)
                && actor.state == ActorState::Live
                && actor.tasks.is_empty()
                && let Some(node) = &actor.node
            {
                idle.entry(node.clone()).or_default().push(id.clone());
            }
        }
        idle
    }

    /// Idle actors of one node whose places are one that something waits for.
    fn room_for_one(&mut self, idle: &Idle) -> Option<Vec<ActorId>> {
        let wanted = self.waiting.unplaced().filter(|(_, actors)| actors.iter().any(|id| self.is_wanted(id)));
        let shapes: Vec<Shape> = wanted.map(|(shape, _)| shape.clone()).collect();
        for shape in shapes {
            let near = shape.near.as_ref().map(|other| self.directory.actors.get(other).and_then(|a| a.node.clone()));
            for (node, actors) in idle {
                if near.as_ref().is_none_or(|at| at.as_ref() == Some(node))
                    && let Some(found) = self.room_at(node, actors, &shape)
                {
                    return Some(found);
                }
            }
        }
        None
    }

    /// An actor of a pool is wanted as long as tasks wait for it.
    fn is_wanted(&self, id: &ActorId) -> bool {
        self.directory.actors.get(id).is_some_and(|actor| {
            matches!(actor.state, ActorState::Pending { .. })
                && (actor.owner != Owner::Pool || self.tasks.queued(&actor.spec.name).next().is_some())
        })
    }

    /// As few of the node's idle actors as leave room for this shape.
    fn room_at(&mut self, node: &NodeId, idle: &[ActorId], shape: &Shape) -> Option<Vec<ActorId>> {
        let mut ends = Vec::new();
        let fits = idle.iter().any(|id| {
            ends.push(id.clone());
            self.fits_without(node, &ends, shape)
        });
        // What was taken first may be of no use.
        for at in (0..ends.len().saturating_sub(1)).rev() {
            let left = ends.remove(at);
            if fits && !self.fits_without(node, &ends, shape) {
                ends.insert(at, left);
            }
        }
        self.touch(node);
        fits.then_some(ends)
    }

    fn fits_without(&mut self, node: &NodeId, ends: &[ActorId], shape: &Shape) -> bool {
        self.imagine_without(node, ends);
        self.placer.place_at(shape, node).is_ok()
    }

    /// The scheduler sees the node as it would be without these actors, until the next [`Head::touch`].
    fn imagine_without(&mut self, node: &NodeId, ends: &[ActorId]) {
        let Some(known) = self.nodes.get(node) else { return };
        let (mut free, mut owed) = (known.free.clone(), known.owed_cpu_milli);
        for actor in ends.iter().filter_map(|id| self.directory.actors.get(id)) {
            let held = &actor.spec.resources;
            let paid = held.cpu_milli.min(owed);
            owed -= paid;
            free.put_back(&Resources { cpu_milli: held.cpu_milli - paid, ..held.clone() });
        }
        self.placer.update(node, &free, known.actors.len().saturating_sub(ends.len()));
    }

    /// Idle actors of the nodes that would hold a gang that waits.
    fn room_for_a_gang(&mut self, idle: &Idle) -> Option<Vec<ActorId>> {
        let wanted = self.gangs.iter().filter(|gang| gang.told.as_ref().is_some_and(|why| !why.never));
        let gangs: Vec<_> = wanted
            .map(|gang| {
                let members = gang.members.iter().filter_map(|id| self.directory.actors.get(id));
                (members.map(|actor| actor.shape()).collect::<Vec<_>>(), gang.strategy)
            })
            .collect();
        for (shapes, strategy) in gangs {
            idle.iter().for_each(|(node, actors)| self.imagine_without(node, actors));
            let found = self.placer.place_all(&shapes, strategy).unwrap_or_default();
            idle.keys().chain(&found).for_each(|node| self.touch(node));
            let ends: Vec<_> =
                idle.iter().filter(|(node, _)| found.contains(node)).flat_map(|(_, a)| a.clone()).collect();
            if !ends.is_empty() {
                return Some(ends);
            }
        }
        None
    }
}
