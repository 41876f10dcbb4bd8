//! Places for actors: what waits is put to the scheduler, what it finds is taken and sent to the node.

use std::sync::Arc;

use covey_domain::{ActorId, Epoch, Error, Gang, Millis, NodeId, agent::GangStrategy, caps};

use crate::{
    directory::{ActorState, Owner},
    head::{ActorInfo, Command, CreateActor, Head, Output, Route, Write, life_in_store},
    pending::Standing,
    scheduler::{Shape, Why},
};

/// A gang that has no places yet.
#[derive(Debug)]
pub(crate) struct WaitingGang {
    /// The id of its first member, also where that has ended.
    pub name: ActorId,
    /// Those that have not ended.
    pub members: Vec<ActorId>,
    pub strategy: GangStrategy,
    pub told: Option<Why>,
    /// The store knows that it waits.
    pub stored: bool,
}

/// With whom an actor waits for its place.
#[derive(Clone, Copy, Debug)]
enum Company {
    Alone,
    Gang,
}

impl Head {
    /// Runs after every verb: ends what was linked to what ended, gives tasks to actors, and places to what waits.
    pub(crate) fn settle(&mut self, now: Millis) {
        while let Some((id, error)) = self.doomed.pop_front() {
            match self.directory.actors.contains_key(&id) {
                true => self.end_actor(&id, error, false, now),
                // It sleeps, or its worker may bring it back after a restart: then it is over too.
                false => {
                    self.forget_life(&id);
                    self.doom_linked(&id, &error);
                }
            }
        }
        self.dispatch(now);
        self.tell_unserved(now);
        if std::mem::take(&mut self.unplanned) && !(self.waiting.is_empty() && self.gangs.is_empty()) {
            // A place that was found may be what another one waited for, to be near it.
            while self.place(now) && self.waiting.any_near() {}
            while self.make_room(now) {
                self.place(now);
            }
            self.tell_unserved(now);
        }
    }

    /// A node is not what it was: what the scheduler knows of it is made anew.
    pub(crate) fn refresh(&mut self, id: &NodeId) {
        match self.nodes.get(id).filter(|n| n.is_live() && !n.draining) {
            Some(node) => self.placer.set(id, node.view(id)),
            None => self.placer.remove(id),
        }
    }

    /// What a node has left has changed.
    pub(crate) fn touch(&mut self, id: &NodeId) {
        if let Some(node) = self.nodes.get(id) {
            self.placer.update(id, &node.free, node.actors.len());
        }
    }

    /// Gives places to those that had one, then to gangs, then to the rest. `true` when any got one.
    fn place(&mut self, now: Millis) -> bool {
        let displaced = self.place_singles(Standing::Displaced, now);
        let gangs = self.place_gangs(now);
        self.place_singles(Standing::New, now) || displaced || gangs
    }

    /// Oldest of each shape first, until the shape fits nowhere.
    fn place_singles(&mut self, standing: Standing, now: Millis) -> bool {
        let mut any = false;
        for (key, mut queue) in self.waiting.take(standing) {
            let why = loop {
                let Some(id) = queue.actors.front().cloned() else { break None };
                if !self.waits(&id, Company::Alone) {
                    queue.actors.pop_front();
                    continue;
                }
                let found = match &queue.shape.near {
                    None => self.placer.place(&queue.shape),
                    Some(other) => self.place_near(other, &queue.shape),
                };
                match found {
                    Ok(node) => {
                        queue.actors.pop_front();
                        self.start_on(&id, &node);
                        any = true;
                    }
                    Err(why) => break Some(why),
                }
            };
            if let Some(why) = why {
                let fresh = std::mem::take(&mut queue.fresh);
                let news = queue.told.as_ref() != Some(&why);
                let hear: Vec<_> = if news { queue.actors.iter().cloned().collect() } else { fresh };
                self.tell_why(hear, &why, now);
                queue.told = Some(why);
            }
            self.waiting.put_back(key, queue);
        }
        any
    }

    /// Whether an actor waits for a place, with its gang or alone.
    fn waits(&self, id: &ActorId, company: Company) -> bool {
        let state = self.directory.actors.get(id).map(|actor| &actor.state);
        let Some(ActorState::Pending { not_before, .. }) = state else { return false };
        match company {
            Company::Alone => *not_before < Millis::MAX,
            Company::Gang => *not_before == Millis::MAX,
        }
    }

    fn tell_why(&mut self, waiting: Vec<ActorId>, why: &Why, now: Millis) {
        // What fits none of the nodes that are back may fit one that is not.
        let hopeless = why.never && self.liveness.expected.is_empty();
        for id in waiting {
            let Some(actor) = self.directory.actors.get_mut(&id) else { continue };
            if let ActorState::Pending { why: told, .. } = &mut actor.state {
                why.text.clone_into(told);
                // Who said how long to wait expects a node that is not there yet.
                let never = hopeless && actor.spec.schedule_timeout_ms.is_none();
                let route = Route::Wait { why: why.text.clone(), never };
                self.out.push_back(Output::Route(id.clone(), route));
                self.hopeless(&id, &why.text, hopeless, now);
            }
        }
    }

    /// A place beside another actor.
    fn place_near(&self, other: &ActorId, shape: &Shape) -> Result<NodeId, Why> {
        let known = self.directory.actors.get(other).filter(|a| !matches!(a.state, ActorState::Dead { .. }));
        let Some(known) = known else {
            return Err(Why { text: format!("wants to be near actor `{other}`, which is over"), never: true });
        };
        let Some(node) = &known.node else {
            return Err(Why {
                text: format!("wants to be near actor `{other}`, which has no place yet"),
                never: false,
            });
        };
        self.placer.place_at(shape, node).map(|()| node.clone())
    }

    /// Makes actors that are placed all at once or not at all. One that dies later is placed again alone.
    pub fn create_gang(
        &mut self,
        asks: Vec<CreateActor>,
        strategy: GangStrategy,
        now: Millis,
    ) -> Result<Vec<ActorInfo>, Error> {
        if asks.is_empty() || asks.len() > caps::GANG_MAX {
            return Err(Error::invalid(format!("a gang has 1 to {} actors, not {}", caps::GANG_MAX, asks.len())));
        }
        if asks.iter().any(|ask| ask.get_if_exists || ask.overrides.contains_key("near")) {
            return Err(Error::invalid("an actor of a gang is new, and near its gang: no get_if_exists, no near"));
        }
        let mut made = Vec::new();
        for ask in asks {
            // Not before for ever: its gang places it.
            match self.make_actor(ask, Millis::MAX, now) {
                Ok(info) => made.push(info),
                Err(error) => {
                    for info in &made {
                        self.end_actor(&info.id, error.clone(), false, now);
                    }
                    self.settle(now);
                    return Err(error);
                }
            }
        }
        let members: Vec<_> = made.iter().map(|info| info.id.clone()).collect();
        let name = members[0].clone();
        if !self.gangs.iter().any(|known| known.name == name) {
            let gang = Gang { members: members.clone(), strategy };
            self.gangs.push(WaitingGang { name: name.clone(), members, strategy, told: None, stored: false });
            self.settle(now);
            self.keep_gang(name, gang);
        }
        made.iter().map(|info| Ok(ActorInfo { created: true, ..self.actor(&info.id)? })).collect()
    }

    /// One that waits is written, so that it is placed as a gang by whichever head has the room.
    fn keep_gang(&mut self, name: ActorId, gang: Gang) {
        if let Some(waits) = self.gangs.iter_mut().find(|waits| waits.name == name) {
            waits.stored = true;
            self.out.push_back(Output::Write(Write::Gang(name, Some(Arc::new(gang)))));
        }
    }

    /// Brings a gang that waited back from the store, after all actors and before the first verb.
    pub fn restore_gang(&mut self, name: ActorId, gang: Gang) {
        let Gang { members, strategy } = gang;
        // They began together, so where one has begun all had their places.
        let had_places = members.iter().any(|id| self.believed.contains_key(id));
        let members: Vec<_> = members.into_iter().filter(|id| self.waits(id, Company::Alone)).collect();
        if had_places || members.is_empty() {
            self.out.push_back(Output::Write(Write::Gang(name, None)));
            return;
        }
        for id in &members {
            if let Some(actor) = self.directory.actors.get_mut(id) {
                actor.state = ActorState::Pending { not_before: Millis::MAX, why: "not placed yet".into() };
            }
        }
        self.gangs.push(WaitingGang { name, members, strategy, told: None, stored: true });
        self.unplanned = true;
    }

    fn place_gangs(&mut self, now: Millis) -> bool {
        let mut any = false;
        for mut gang in std::mem::take(&mut self.gangs) {
            gang.members.retain(|id| self.waits(id, Company::Gang));
            let shapes: Vec<_> = gang.members.iter().map(|id| self.directory.actors[id].shape()).collect();
            match self.placer.place_all(&shapes, gang.strategy) {
                Ok(nodes) => {
                    for (id, node) in gang.members.iter().zip(&nodes) {
                        self.start_on(id, node);
                    }
                    any |= !nodes.is_empty();
                    if gang.stored {
                        self.out.push_back(Output::Write(Write::Gang(gang.name, None)));
                    }
                }
                Err(why) => {
                    if gang.told.as_ref() != Some(&why) {
                        self.tell_why(gang.members.clone(), &why, now);
                        gang.told = Some(why);
                    }
                    self.gangs.push(gang);
                }
            }
        }
        any
    }

    fn start_on(&mut self, id: &ActorId, node_id: &NodeId) {
        let (Some(actor), Some(node)) = (self.directory.actors.get_mut(id), self.nodes.get_mut(node_id)) else {
            return;
        };
        self.activations += 1;
        actor.epoch = Epoch(self.activations.max(actor.epoch.next().0));
        actor.state = ActorState::Starting;
        actor.node = Some(node_id.clone());
        node.free.take(&actor.spec.resources);
        node.actors.insert(id.clone());
        let with_code = actor.spec.code().is_some_and(|digest| node.blobs.insert(digest.clone()));
        let with_dir = actor.spec.dir().is_some_and(|digest| node.blobs.insert(digest.clone()));
        let start = Command::Start {
            actor: id.clone(),
            epoch: actor.epoch,
            spec: actor.spec.clone(),
            init: actor.init.clone(),
            owner: actor.owner.as_text(),
            with_code,
            with_dir,
            with_state: actor.saved || actor.owner == Owner::Virtual,
        };
        self.out.extend(life_in_store(id, &actor.owner, Some((node_id.clone(), actor.epoch))));
        self.out.push_back(Output::Send(node_id.clone(), start));
        self.touch(node_id);
    }

    /// The actor's place is free again.
    pub(crate) fn release(&mut self, id: &ActorId) -> Option<NodeId> {
        let actor = self.directory.actors.get_mut(id)?;
        let node_id = actor.node.take()?;
        actor.last_node = Some(node_id.clone());
        actor.stuck = None;
        self.out.extend(life_in_store(id, &actor.owner, None));
        if let Some(node) = self.nodes.get_mut(&node_id)
            && node.actors.remove(id)
        {
            let mut held = actor.spec.resources.clone();
            if std::mem::take(&mut actor.lends) {
                held.cpu_milli = 0;
            }
            node.put_back(&held);
        }
        self.touch(&node_id);
        self.unplanned = true;
        Some(node_id)
    }
}
