//! Places for actors: what waits is put to the scheduler, what it finds is taken and sent to the node.

use covey_domain::{ActorId, Epoch, Error, Millis, NodeId, agent::GangStrategy, caps};

use crate::{
    directory::{ActorState, Owner},
    head::{ActorInfo, Command, CreateActor, Head, Output, Route, life_in_store},
    pending::Standing,
    scheduler::{Shape, Why},
};

/// Actors that are placed all at once or not at all, and have no places yet.
#[derive(Debug)]
pub(crate) struct Gang {
    pub members: Vec<ActorId>,
    pub strategy: GangStrategy,
    pub told: Option<Why>,
}

impl Head {
    /// Runs after every verb: ends what was linked to what ended, gives tasks to actors, and places to what waits.
    pub(crate) fn settle(&mut self, now: Millis) {
        while let Some((id, error)) = self.doomed.pop_front() {
            self.end_actor(&id, error, false, now);
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
                if !self.is_pending(&id) {
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

    fn is_pending(&self, id: &ActorId) -> bool {
        self.directory.actors.get(id).is_some_and(|a| matches!(a.state, ActorState::Pending { .. }))
    }

    fn tell_why(&mut self, waiting: Vec<ActorId>, why: &Why, now: Millis) {
        for id in waiting {
            let Some(actor) = self.directory.actors.get_mut(&id) else { continue };
            if let ActorState::Pending { why: told, .. } = &mut actor.state {
                why.text.clone_into(told);
                // Who said how long to wait expects a node that is not there yet.
                let never = why.never && actor.spec.schedule_timeout_ms.is_none();
                let route = Route::Wait { why: why.text.clone(), never };
                self.out.push_back(Output::Route(id.clone(), route));
                self.hopeless(&id, &why.text, why.never, now);
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
        self.gangs.push(Gang { members: made.iter().map(|info| info.id.clone()).collect(), strategy, told: None });
        self.settle(now);
        made.iter().map(|info| Ok(ActorInfo { created: true, ..self.actor(&info.id)? })).collect()
    }

    fn place_gangs(&mut self, now: Millis) -> bool {
        let mut any = false;
        for mut gang in std::mem::take(&mut self.gangs) {
            gang.members.retain(|id| self.is_pending(id));
            let shapes: Vec<_> = gang.members.iter().map(|id| self.directory.actors[id].shape()).collect();
            match self.placer.place_all(&shapes, gang.strategy) {
                Ok(nodes) => {
                    for (id, node) in gang.members.iter().zip(&nodes) {
                        self.start_on(id, node);
                    }
                    any |= !nodes.is_empty();
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
