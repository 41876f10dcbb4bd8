//! An object in a Python process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use covey_domain::{ActorId, Error, ErrorKind, agent::known_as, caps, task::TaskInput};
use covey_proto::v1::{self, Payload, host_frame::Body};
use tokio::sync::oneshot;

use super::{
    HostNumber,
    host::{Host, Running},
};
use crate::{
    memory,
    outward::Saver,
    turn::{Onward as _, Turn, stopped},
};

/// Turns of a stopped actor have so long to end.
const STOP_TELLS: Duration = Duration::from_millis(200);
/// A process has so long to say that what waited for a stopped actor will not begin.
const STOP_REFUSES: Duration = Duration::from_secs(10);
/// A process of one actor has so long to end itself after that was stopped.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Calls of one actor that are in its process.
#[derive(Default)]
pub(super) struct Count {
    calls: AtomicU64,
    none: tokio::sync::Notify,
}

impl Count {
    pub fn down(&self) {
        if self.calls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none.notify_waiters();
        }
    }
}

/// An object in a process.
pub(crate) struct PythonActor {
    actor: ActorId,
    host: Arc<Host>,
    running: Arc<Count>,
    saver: Saver,
}

impl PythonActor {
    pub(super) fn new(actor: ActorId, host: Arc<Host>, saver: Saver) -> Self {
        Self { actor, host, running: Arc::default(), saver }
    }

    /// Hands a turn to the process, which keeps to the actor's order and concurrency.
    pub fn accept(&self, turn: Turn) {
        let Turn { invocation, sink, control, deadline, run_timeout, retry_on, alone, over } = turn;
        if self.running.calls.fetch_add(1, Ordering::AcqRel) >= caps::MAILBOX_DEPTH_MAX as u64 {
            self.running.down();
            drop(over);
            return sink
                .end(Err(Error::new(ErrorKind::Overloaded, "the actor's mailbox is full").executed(Some(false))));
        }
        let call = self.host.next_call.fetch_add(1, Ordering::Relaxed);
        let method = known_as(&invocation.method).to_owned();
        let mut about = v1::HostCall {
            call,
            actor: self.actor.to_string(),
            method: invocation.method,
            args: Some(invocation.args),
            json: invocation.json,
            chain: invocation.chain,
            traceparent: sink.traceparent(),
            timeout_ms: deadline.map_or(0, |at| at.duration_since(tokio::time::Instant::now()).as_millis() as u64),
            run_timeout_ms: run_timeout.map_or(0, |limit| limit.as_millis() as u64),
            retry_on,
            alone,
            ..v1::HostCall::default()
        };
        if let Some(task) = invocation.task {
            let TaskInput { history, sampling, .. } = &task.input;
            if !history.is_empty() {
                about.history = covey_proto::to_json(history);
            }
            if !sampling.is_empty() {
                about.sampling = covey_proto::to_json(sampling);
            }
            (about.task, about.context) = (task.task.to_string(), task.context);
            (about.model, about.message_id) = (task.model, task.message_id);
        }
        let running = Running {
            actor: self.actor.clone(),
            sink,
            over,
            taken: 0,
            count: self.running.clone(),
            state: None,
            saver: self.saver.clone(),
            method,
            run_timeout,
            begun: false,
            stopping: false,
        };
        {
            let mut live = self.host.live.lock();
            match live.as_mut() {
                Some(live) => drop(live.calls.insert(call, running)),
                // It never got there: another process may run it.
                None => {
                    drop(live);
                    return running.lost(self.host.died().executed(Some(false)));
                }
            }
        }
        self.host.send(Body::Call(about));
        control.go_on(self.host.clone(), call);
        // Cancelled before the line above could be seen by whoever did that.
        if control.token.is_cancelled() {
            self.host.cancel(call);
        }
        if let Some(at) = deadline {
            let host = Arc::downgrade(&self.host);
            tokio::spawn(async move {
                tokio::time::sleep_until(at).await;
                if let Some(host) = host.upgrade() {
                    let text = "the time for this call ran out";
                    host.give_up(call, Error::new(ErrorKind::DeadlineExceeded, text).executed(None));
                }
            });
        }
    }

    /// The process it is in.
    pub fn host(&self) -> HostNumber {
        self.host.number
    }

    /// Why its process is replaced, if it is.
    pub fn replaced(&self) -> Option<String> {
        self.host.retired.get().cloned()
    }

    /// Its process has not ended.
    pub fn is_alive(&self) -> bool {
        self.host.live.lock().is_some()
    }

    /// Its process, what that uses, and its bound.
    pub fn usage(&self) -> (u32, u64, u64) {
        (self.host.pid, memory::resident(self.host.pid).unwrap_or(0), self.host.memory.limit())
    }

    /// The process it is in.
    pub fn pid(&self) -> u32 {
        self.host.pid
    }

    /// Where the threads of its process are.
    pub async fn stack(&self) -> Result<Vec<u8>, Error> {
        self.host.stack().await
    }

    pub fn is_idle(&self) -> bool {
        self.running.calls.load(Ordering::Acquire) == 0
    }

    /// What `__snapshot__` of the object gives; `None` when it has none.
    pub async fn snapshot(&self) -> Result<Option<Payload>, Error> {
        let number = self.host.next_call.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        if self.host.with(|live| live.snapshots.insert(number, tx)).is_none() {
            return Err(self.host.died());
        }
        self.host.send(Body::Snapshot(v1::HostSnapshot { actor: self.actor.to_string(), number }));
        rx.await.unwrap_or_else(|_| Err(self.host.died()))
    }

    /// Waits until no call is in the process.
    pub async fn drained(&self) {
        loop {
            let none = self.running.none.notified();
            if self.running.calls.load(Ordering::Acquire) == 0 {
                return;
            }
            none.await;
        }
    }

    /// The actor is over; what it was doing is not finished. What had not begun comes back unrun.
    pub fn stopped(&self) {
        self.host.asker.stopped(&self.actor);
        self.host.output.leave(&self.actor);
        let waits = self.host.with(|live| {
            live.actors.remove(&self.actor);
            let mut any = false;
            for running in live.calls.values_mut().filter(|running| running.actor == self.actor) {
                (running.stopping, any) = (true, true);
            }
            any
        });
        let Some(waits) = waits else { return };
        self.host.send(Body::Stop(v1::HostStop { actor: self.actor.to_string() }));
        let own = self.host.own.load(Ordering::Relaxed);
        if own {
            // Its only actor is gone.
            self.host.send(Body::Stop(v1::HostStop { actor: String::new() }));
        }
        if !(waits || own) {
            return;
        }
        let (host, actor) = (Arc::downgrade(&self.host), self.actor.clone());
        tokio::spawn(async move {
            tokio::time::sleep(STOP_TELLS).await;
            let Some(up) = host.upgrade() else { return };
            up.end_stopped(&actor, false);
            drop(up);
            if own {
                tokio::time::sleep(STOP_GRACE).await;
                if let Some(host) = host.upgrade() {
                    // One that hangs does not hear that it should go.
                    host.unwanted.cancel();
                }
                return;
            }
            tokio::time::sleep(STOP_REFUSES).await;
            // The end of a process that is replaced says it too.
            if let Some(host) = host.upgrade().filter(|host| host.retired.get().is_none()) {
                host.end_stopped(&actor, true);
            }
        });
    }
}

impl Host {
    /// Ends the calls of a stopped actor that still run. What has not begun waits until the process says that it never will, or
    /// has ended: only then can it run elsewhere; with `all` it ends too.
    fn end_stopped(&self, actor: &ActorId, all: bool) {
        let left = self.with(|live| {
            let ours = live.calls.iter().filter(|(_, running)| running.stopping && running.actor == *actor);
            let ours: Vec<_> = ours
                .map(|(id, running)| (*id, running.begun || self.has_begun(*id) == Some(true)))
                .filter(|(id, begun)| all || *begun || self.has_begun(*id).is_none())
                .collect();
            ours.into_iter().filter_map(|(id, begun)| Some((id, begun, live.calls.remove(&id)?))).collect::<Vec<_>>()
        });
        for (call, begun, running) in left.into_iter().flatten() {
            let method = running.method.clone();
            running.lost(stopped());
            if begun {
                self.left_behind(call, actor.clone(), method);
            }
        }
    }
}
