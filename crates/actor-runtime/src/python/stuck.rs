//! Turns that go on after they were given up: cancelled, or over their run timeout. And constructors that do not return.
//!
//! ```text
//! given up ──100 ms──▶ answered as stuck, the head is told ──5 s──▶ the process is replaced
//!     └── its end comes ──▶ answered        └── its end comes ──▶ the head is told that it is free
//! ```
//!
//! A method on a thread cannot be ended from outside, and one that blocks the process's loop hears nothing. So nothing
//! new is sent behind such a turn, and after a grace the process goes: its stack is in the log, the actor starts again, the
//! others finish the turns that run and move with their state. What has not begun comes back unrun and runs elsewhere, also
//! when the loop is blocked: a thread of the process does that (`covey._standby`), and ends what waits for that loop. A process in which no thread can run
//! is ended at once. Only a turn that has begun counts, by the table of calls ([`super::begun`]) or by the process's word; what
//! waits in a process that is merely busy is no reason to end it.

use std::{sync::Weak, time::Duration};

use covey_domain::{ActorId, Error, ErrorKind, caps, error::STUCK};
use covey_proto::v1::{self, host_frame::Body};
use tokio::sync::oneshot;

use super::{
    News,
    host::{Host, Running},
};

const STUCK_AFTER: Duration = Duration::from_millis(caps::STUCK_AFTER_MS);
const GRACE: Duration = Duration::from_millis(caps::STUCK_GRACE_MS);
const REPLACE: Duration = Duration::from_millis(caps::REPLACE_MS);

/// A call that was given up.
pub(super) struct GivenUp {
    actor: ActorId,
    error: Error,
    /// Until its caller is answered.
    running: Option<Running>,
    method: String,
    /// Its turn runs, as far as is known.
    begun: bool,
}

impl GivenUp {
    /// Its process is gone.
    pub fn over(self) {
        if let Some(running) = self.running {
            running.end(Err(self.error));
        }
    }

    fn is_stuck(&self) -> bool {
        self.begun && self.running.is_none()
    }

    fn why(&self) -> String {
        let reason = match self.error.kind {
            ErrorKind::DeadlineExceeded => "its time was over",
            ErrorKind::ActorDied => "its actor was stopped",
            _ => "it was cancelled",
        };
        format!("a turn of `{}` goes on after {reason}", self.method)
    }
}

impl Host {
    /// A turn has begun, or still runs although it was told to stop.
    pub(super) fn began(&self, call: u64) {
        let (run_timeout, late) = {
            let mut guard = self.live.lock();
            let Some(live) = guard.as_mut() else { return };
            if let Some(running) = live.calls.get_mut(&call) {
                running.begun = true;
                (running.run_timeout, false)
            } else if let Some(given_up) = live.given_up.get_mut(&call) {
                let known = std::mem::replace(&mut given_up.begun, true);
                (None, !known && given_up.is_stuck())
            } else {
                return;
            }
        };
        let host = self.weak();
        if let Some(limit) = run_timeout {
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(limit).await;
                    let Some(host) = host.upgrade() else { return };
                    // While it waits for an answer from outside, its time does not run.
                    let rests = host.with(|live| live.calls.get(&call).map(|running| running.sink.rests())).flatten();
                    match rests {
                        Some(true) => {}
                        Some(false) => {
                            let text = format!("its turn took longer than its run timeout of {}", seconds(limit));
                            let error = Error::new(ErrorKind::DeadlineExceeded, text).executed(None);
                            return host.give_up(call, error);
                        }
                        None => return,
                    }
                }
            });
        } else if late {
            tokio::spawn(async move {
                if let Some(host) = host.upgrade() {
                    host.tell_stuck(call).await;
                }
            });
        }
    }

    /// Answers a call that its method may go on with, once it is known whether it does; the method is told to stop.
    pub(super) fn give_up(&self, call: u64, error: Error) {
        let known = self.with(|live| match live.calls.remove(&call) {
            Some(running) => {
                let (actor, method, begun) = (running.actor.clone(), running.method.clone(), running.begun);
                live.given_up.insert(call, GivenUp { actor, error, running: Some(running), method, begun });
                true
            }
            None => false,
        });
        if known != Some(true) {
            return;
        }
        self.send(Body::Cancel(v1::HostCancel { call }));
        let host = self.weak();
        tokio::spawn(async move {
            tokio::time::sleep(STUCK_AFTER).await;
            let Some(up) = host.upgrade() else { return };
            up.answer_given_up(call).await;
            drop(up);
            grace(host, call).await;
        });
    }

    /// A turn goes on although its actor was stopped: nobody waits for it, but it is in the way of others.
    pub(super) fn left_behind(&self, call: u64, actor: ActorId, method: String) {
        let error = Error::new(ErrorKind::ActorDied, "its actor was stopped");
        let left = GivenUp { actor, error, running: None, method, begun: true };
        if self.with(|live| live.given_up.insert(call, left)).is_some() {
            tokio::spawn(grace(self.weak(), call));
        }
    }

    /// It has not ended by now: whoever waits is answered without it.
    async fn answer_given_up(&self, call: u64) {
        let waiting = self.with(|live| {
            let given_up = live.given_up.get_mut(&call)?;
            // A process whose loop is blocked cannot say so.
            given_up.begun |= self.has_begun(call) == Some(true);
            Some((given_up.running.take()?, given_up.error.clone(), given_up.begun))
        });
        let Some((running, error, begun)) = waiting.flatten() else { return };
        if begun {
            // Before the answer, so that nobody who has it finds the actor free.
            self.tell_stuck(call).await;
        }
        let detail = begun.then(|| STUCK.to_owned());
        running.end(Err(Error { detail, ..error }));
    }

    async fn tell_stuck(&self, call: u64) {
        let about = self.with(|live| live.given_up.get(&call).map(|g| (g.actor.clone(), g.why()))).flatten();
        if let Some((actor, why)) = about {
            let (told, heard) = oneshot::channel();
            let _ = self.news.send(News::Stuck { host: self.number, actor, why, told });
            let _ = heard.await;
        }
    }

    /// The end of a call that nobody waits for any more, or not for long.
    pub(super) fn given_up_ended(&self, call: u64) {
        let ended = self.with(|live| {
            let given_up = live.given_up.remove(&call)?;
            let free = given_up.is_stuck()
                && !live.given_up.values().any(|other| other.actor == given_up.actor && other.is_stuck());
            Some((given_up, free))
        });
        let Some((given_up, free)) = ended.flatten() else { return };
        if free {
            let _ = self.news.send(News::Free { host: self.number, actor: given_up.actor.clone() });
        }
        given_up.over();
    }

    async fn grace_over(&self, call: u64) {
        let stuck = self.with(|live| {
            let given_up = live.given_up.get_mut(&call)?;
            given_up.begun |= self.has_begun(call) == Some(true);
            given_up.is_stuck().then(|| (given_up.actor.clone(), given_up.why()))
        });
        if let Some((actor, why)) = stuck.flatten() {
            self.replace(&actor, format!("{why}, for {}", seconds(GRACE))).await;
        }
    }

    /// An actor's constructor (or its `__restore__`) has not returned; its process is replaced.
    pub(super) fn hangs(&self, actor: &ActorId, within: Duration) -> Error {
        let why = format!("the constructor of actor `{actor}` has not returned within {}", seconds(within));
        let (host, actor, reason) = (self.weak(), actor.clone(), why.clone());
        tokio::spawn(async move {
            if let Some(host) = host.upgrade() {
                host.replace(&actor, reason).await;
            }
        });
        let hint = "`covey logs` has its stack; give a constructor that takes long a longer `schedule_timeout`";
        Error::new(ErrorKind::Unschedulable, why).hint(hint).executed(Some(false))
    }

    /// The process goes because of an actor: nothing new comes, nothing more begins, its actors leave, then it is ended.
    async fn replace(&self, actor: &ActorId, why: String) {
        if self.retired.set(why.clone()).is_err() {
            return;
        }
        let stack = self.stack().await;
        let stack = stack.map_or_else(|e| e.to_string(), |text| String::from_utf8_lossy(&text).into_owned());
        tracing::warn!(pid = self.pid, %actor, why, "a python process is replaced");
        tracing::warn!("stacks of python process {}, replaced because of actor {actor}:\n{stack}", self.pid);
        let actors = self.with(|live| {
            let stuck = |actor: &ActorId| live.given_up.values().any(|g| g.actor == *actor && g.is_stuck());
            live.actors.keys().cloned().partition::<Vec<_>, _>(stuck)
        });
        let Some((stuck, others)) = actors else { return };
        // Before anything is refused, so that who looks again finds the actors on their way.
        let _ = self.news.send(News::Replaced { host: self.number, stuck, others, why });
        self.start_nothing();
        if self.retire().await {
            tracing::info!(pid = self.pid, "the process begins nothing more");
            let _ = tokio::time::timeout(REPLACE, self.emptied()).await;
        } else {
            tracing::warn!(pid = self.pid, "the process does not answer and is ended with all that is in it");
        }
        self.unwanted.cancel();
    }

    /// Waits until no actor is in the process.
    async fn emptied(&self) {
        const LOOK: Duration = Duration::from_millis(20);
        while self.load() > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Looks after the grace whether the turn still goes on.
async fn grace(host: Weak<Host>, call: u64) {
    tokio::time::sleep(GRACE.saturating_sub(STUCK_AFTER)).await;
    if let Some(host) = host.upgrade() {
        host.grace_over(call).await;
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}
