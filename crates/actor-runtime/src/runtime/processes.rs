//! What becomes of Python processes, as news of their actors.

use std::sync::Arc;

use covey_domain::{ActorId, Error, ErrorKind};
use covey_proto::v1::{ActorReport, actor_report::State};

use super::{Cell, Inner, Inside};
use crate::python::{HostNumber, News};

impl Inner {
    pub(super) fn of_process(self: &Arc<Self>, news: News) {
        match news {
            News::Died { host, actors, suspects, why } => {
                if let Some(hosts) = &self.hosts {
                    hosts.suspect(suspects);
                }
                for actor in actors {
                    if self.is_in(&actor, host) {
                        self.lost(&actor, &why);
                    }
                }
            }
            News::Stuck { host, actor, why, told } => {
                self.say(&actor, host, State::Stuck, &why);
                drop(told);
            }
            News::Free { host, actor } => self.say(&actor, host, State::Live, ""),
            News::Lost { host, actor, why } => self.gives_up(&actor, host, &why),
            News::Waits { host, actor, waits } => {
                self.say(&actor, host, if waits { State::Waiting } else { State::Live }, "");
            }
            News::Replaced { host, stuck, others, why } => {
                for actor in stuck {
                    // What waits behind the stuck turn comes back unrun, and its callers look again.
                    self.gives_up(&actor, host, &why);
                }
                for actor in others {
                    self.say(&actor, host, State::Leaving, &why);
                }
            }
        }
    }

    /// The actor ends, in a process that goes on for now.
    fn gives_up(&self, actor: &ActorId, host: HostNumber, why: &str) {
        if self.is_in(actor, host)
            && let Some(cell) = self.lost(actor, why)
        {
            cell.inside.stopped();
        }
    }

    /// The actor lives in this process now.
    fn is_in(&self, actor: &ActorId, host: HostNumber) -> bool {
        self.actors.lock().get(actor).is_some_and(|cell| cell.is_in(host))
    }

    pub(super) fn say(&self, actor: &ActorId, host: HostNumber, state: State, why: &str) {
        let mut actors = self.actors.lock();
        let Some(cell) = actors.get_mut(actor).filter(|cell| cell.is_in(host)) else { return };
        cell.said = (state != State::Live).then(|| Box::new((state, why.to_owned())));
        // Under the lock: a snapshot that is taken later has it, one that was taken before comes before it.
        self.report(cell.stands(actor));
    }
}

impl Cell {
    fn is_in(&self, host: HostNumber) -> bool {
        matches!(&self.inside, Inside::Process(process) if process.host() == host)
    }

    /// How it stands: alive, and what it said beyond that.
    pub(super) fn stands(&self, id: &ActorId) -> ActorReport {
        let Some((state, why)) = self.said.as_deref() else { return self.report(id, State::Live) };
        let failure = (!why.is_empty()).then(|| Error::new(ErrorKind::Unavailable, why.as_str()).into());
        ActorReport { failure, ..self.report(id, *state) }
    }
}
