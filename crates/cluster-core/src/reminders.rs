//! Durable reminders: calls to an actor at a time, once or again and again, whatever dies in between.
//!
//! They are stored by the wall clock and waited for by the cluster's own: a wall clock that jumps moves none of a running head.

use std::{collections::BTreeMap, sync::Arc};

use covey_domain::{ActorId, Error, ErrorKind, Millis, caps};
use hashbrown::HashMap;

use crate::{
    directory::ActorState,
    head::{Head, Output, Write},
};

/// A call that was not answered is made again after this time.
const AGAIN_MS: Millis = 1_000;

/// What is called when.
#[derive(Clone, Debug, PartialEq)]
pub struct Reminder {
    /// When, milliseconds since the epoch.
    pub due_ms: Millis,
    /// Again this often; `None` = once.
    pub every_ms: Option<Millis>,
    /// Which method.
    pub method: String,
    /// Its arguments, an encoded payload.
    pub args: Arc<[u8]>,
}

/// A reminder as the store keeps it.
pub type StoredReminder = (ActorId, String, Reminder);

#[derive(Debug, Default)]
pub(crate) struct Reminders {
    /// Each with its next time, by the cluster's own clock.
    by_name: HashMap<(ActorId, String), (Arc<Reminder>, Millis)>,
    /// The next time of each that is not being called now, by the cluster's own clock.
    due: BTreeMap<(Millis, ActorId, String), ()>,
}

impl Head {
    /// Sets a reminder; one of the same name of the same actor is replaced.
    pub fn set_reminder(&mut self, actor: ActorId, name: String, reminder: Reminder) -> Result<(), Error> {
        if self.reminders.by_name.len() >= caps::REMINDERS_MAX {
            return Err(Error::new(ErrorKind::Overloaded, format!("{} reminders are set", caps::REMINDERS_MAX)));
        }
        if reminder.every_ms.is_some_and(|every| every < 100) {
            return Err(Error::invalid("a reminder comes at most every 100 ms").hint("use a timer inside the actor"));
        }
        self.drop_reminder(&actor, &name);
        self.restore_reminder((actor.clone(), name.clone(), reminder.clone()));
        self.out.push_back(Output::Write(Write::Reminder(actor, name, Some(Arc::new(reminder)))));
        Ok(())
    }

    /// Takes a reminder back. `false`: there was none.
    pub fn forget_reminder(&mut self, actor: &ActorId, name: &str) -> bool {
        let known = self.drop_reminder(actor, name);
        if known {
            self.out.push_back(Output::Write(Write::Reminder(actor.clone(), name.to_owned(), None)));
        }
        known
    }

    /// Brings a reminder back from the store, before the first verb.
    pub fn restore_reminder(&mut self, (actor, name, reminder): StoredReminder) {
        let due = reminder.due_ms.saturating_add_signed(-self.wall_ahead);
        self.reminders.due.insert((due, actor.clone(), name.clone()), ());
        self.reminders.by_name.insert((actor, name), (Arc::new(reminder), due));
    }

    /// A reminder's call is over: answered, or it is made again.
    pub fn reminded(&mut self, actor: &ActorId, name: &str, told: &Arc<Reminder>, answered: bool, now: Millis) {
        let key = (actor.clone(), name.to_owned());
        // Replaced or taken back while it was called: the new one has its own time.
        let Some(due) = self.reminders.by_name.get(&key).filter(|(known, _)| known == told).map(|(_, due)| *due) else {
            return;
        };
        // One that was made and is over will not be there the next time either; a virtual one always is.
        let alive = |a: &crate::directory::Actor| !matches!(a.state, ActorState::Dead { .. });
        if actor.key().is_none() && !self.directory.actors.get(actor).is_some_and(alive) {
            self.forget_reminder(actor, name);
            return;
        }
        let next = match (answered, told.every_ms) {
            (false, _) => now + AGAIN_MS,
            (true, Some(every)) => due + every * (now.saturating_sub(due) / every + 1),
            (true, None) => {
                self.forget_reminder(actor, name);
                return;
            }
        };
        let reminder = Arc::new(Reminder { due_ms: self.wall(next), ..(**told).clone() });
        self.reminders.due.insert((next, actor.clone(), name.to_owned()), ());
        self.reminders.by_name.insert(key, (reminder.clone(), next));
        if answered {
            self.out.push_back(Output::Write(Write::Reminder(actor.clone(), name.to_owned(), Some(reminder))));
        }
    }

    pub(crate) fn remind(&mut self, now: Millis) {
        while let Some(((due, actor, name), ())) = self.reminders.due.pop_first() {
            if due > now {
                self.reminders.due.insert((due, actor, name), ());
                return;
            }
            if let Some((reminder, _)) = self.reminders.by_name.get(&(actor.clone(), name.clone())).cloned() {
                self.out.push_back(Output::Remind(actor, name, reminder));
            }
        }
    }

    fn drop_reminder(&mut self, actor: &ActorId, name: &str) -> bool {
        let Some((_, due)) = self.reminders.by_name.remove(&(actor.clone(), name.to_owned())) else { return false };
        self.reminders.due.remove(&(due, actor.clone(), name.to_owned()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HeadConfig;

    fn reminder(due_ms: Millis, every_ms: Option<Millis>) -> Reminder {
        Reminder { due_ms, every_ms, method: "ring".into(), args: Arc::from([]) }
    }

    fn due(head: &mut Head, now: Millis) -> Vec<(ActorId, String, Arc<Reminder>)> {
        head.tick(now);
        let mut found = Vec::new();
        while let Some(output) = head.poll_output() {
            if let Output::Remind(actor, name, reminder) = output {
                found.push((actor, name, reminder));
            }
        }
        found
    }

    #[test]
    fn it_rings_once_or_again_and_until_it_is_answered() {
        let mut head = Head::new(HeadConfig::default(), 1);
        let actor = ActorId::from("a/1");
        head.set_reminder(actor.clone(), "once".into(), reminder(100, None)).expect("room");
        head.set_reminder(actor.clone(), "often".into(), reminder(100, Some(1_000))).expect("room");
        assert!(due(&mut head, 99).is_empty());
        let rung = due(&mut head, 100);
        assert_eq!(rung.len(), 2);
        assert!(due(&mut head, 5_000).is_empty(), "not again while it is being called");
        for (actor, name, told) in &rung {
            head.reminded(actor, name, told, name == "often", 5_000);
        }
        let again = due(&mut head, 6_000);
        assert_eq!(again.len(), 2, "what was not answered is called again, the other at its next time");
        for (actor, name, told) in &again {
            head.reminded(actor, name, told, true, 6_000);
        }
        assert!(due(&mut head, 6_099).is_empty(), "missed times are left out");
        assert_eq!(due(&mut head, 6_100).len(), 1, "the rhythm is kept");
        assert!(head.forget_reminder(&actor, "often") && !head.forget_reminder(&actor, "once"));
    }

    #[test]
    fn an_actor_that_is_over_is_not_reminded_any_more() {
        let mut head = Head::new(HeadConfig::default(), 1);
        let actor = ActorId::from("actor-1");
        head.set_reminder(actor.clone(), "r".into(), reminder(1, Some(500))).expect("room");
        let rung = due(&mut head, 1);
        head.reminded(&actor, "r", &rung[0].2, false, 2);
        assert!(due(&mut head, 1_000_000).is_empty() && !head.forget_reminder(&actor, "r"));
        assert!(head.set_reminder(actor, "r".into(), reminder(1, Some(1))).is_err());
    }
}
