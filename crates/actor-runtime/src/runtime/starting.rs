//! Activations on their way up. Pure: a table of who begins in which epoch, and who is not wanted any more.

use std::collections::HashMap;

use covey_domain::{ActorId, Epoch};

/// An activation that is being built.
#[derive(Clone, Debug)]
pub(super) struct Beginning {
    pub epoch: Epoch,
    pub agent: String,
    pub owner: String,
    unwanted: bool,
}

/// All of them. Of one actor several may be under way: a newer one does not wait until an older one is given up.
#[derive(Debug, Default)]
pub(super) struct Starting {
    by_actor: HashMap<ActorId, Vec<Beginning>>,
}

impl Starting {
    /// An activation begins; older ones of the same actor are not wanted any more. `false`: a newer one has begun already.
    pub fn begin(&mut self, actor: &ActorId, epoch: Epoch, agent: &str, owner: &str) -> bool {
        let all = self.by_actor.entry(actor.clone()).or_default();
        if all.iter().any(|one| one.epoch > epoch) {
            return false;
        }
        all.iter_mut().for_each(|one| one.unwanted = true);
        all.push(Beginning { epoch, agent: agent.to_owned(), owner: owner.to_owned(), unwanted: false });
        true
    }

    /// An activation is built, or cannot be. `true`: it is still wanted.
    pub fn finish(&mut self, actor: &ActorId, epoch: Epoch) -> bool {
        let Some(all) = self.by_actor.get_mut(actor) else { return false };
        let wanted = all.iter().any(|one| one.epoch == epoch && !one.unwanted);
        all.retain(|one| one.epoch != epoch);
        if all.is_empty() {
            self.by_actor.remove(actor);
        }
        wanted
    }

    /// This activation and no other is not wanted any more. Gives it, if it was until now.
    pub fn stop(&mut self, actor: &ActorId, epoch: Epoch) -> Option<Beginning> {
        let one = self.by_actor.get_mut(actor)?.iter_mut().find(|one| one.epoch == epoch && !one.unwanted)?;
        one.unwanted = true;
        Some(one.clone())
    }

    /// None is wanted any more.
    pub fn stop_all(&mut self) {
        self.by_actor.values_mut().flatten().for_each(|one| one.unwanted = true);
    }

    /// Those that are wanted.
    pub fn wanted(&self) -> impl Iterator<Item = (&ActorId, &Beginning)> {
        let all = self.by_actor.iter().flat_map(|(actor, all)| all.iter().map(move |one| (actor, one)));
        all.filter(|(_, one)| !one.unwanted)
    }

    /// Nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.by_actor.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(starting: &Starting) -> Vec<u64> {
        starting.wanted().map(|(_, one)| one.epoch.0).collect()
    }

    #[test]
    fn a_stop_of_an_older_epoch_leaves_a_newer_one_alone() {
        let (mut starting, a) = (Starting::default(), ActorId::from("a/1"));
        assert!(starting.begin(&a, Epoch(5), "a", "virtual"));
        assert!(starting.stop(&a, Epoch(4)).is_none());
        assert_eq!(epochs(&starting), [5]);
        assert!(starting.stop(&a, Epoch(5)).is_some() && starting.stop(&a, Epoch(5)).is_none());
        assert!(!starting.finish(&a, Epoch(5)) && starting.is_empty());
    }

    #[test]
    fn the_newest_wins_whoever_is_built_first() {
        let (mut starting, a) = (Starting::default(), ActorId::from("a/1"));
        assert!(starting.begin(&a, Epoch(1), "a", "virtual") && starting.begin(&a, Epoch(2), "a", "virtual"));
        assert!(!starting.begin(&a, Epoch(1), "a", "virtual"), "an older one comes too late");
        assert_eq!(epochs(&starting), [2]);
        assert!(starting.finish(&a, Epoch(2)));
        assert!(!starting.finish(&a, Epoch(1)) && starting.is_empty());
        assert!(starting.begin(&a, Epoch(3), "a", "virtual"));
        starting.stop_all();
        assert!(!starting.finish(&a, Epoch(3)));
    }
}
