//! The worker's end of the link: dial, say hello, work, dial again. When its lease ends, by its own clock, or the head says that
//! its work was given to others, everything here stops first.

use std::{
    collections::HashMap,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use covey_actor_runtime::{Ahead, Lane, Models, Report, Runtime};
use covey_cluster_core::{lease::Lease, link::Outbox};
use covey_domain::{ActorId, Error, ErrorKind, Millis, TaskEvent, TaskId};
use covey_proto::{
    from_status, to_json,
    v1::{self, FromWorker, WorkerFrame, head_frame, worker_frame::Body},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;

use crate::{
    Facts,
    enroll::{self, Door, RETRY_FIRST, RETRY_LAST},
    machine::boot_ms,
    open_entries::OpenEntries,
    shared_lease::SharedLease,
};

/// Reports put into one message.
const BATCH_MAX: usize = 1_024;
/// A head that does not answer a hello within this time is dialled again.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a lease is looked at: timers of the runtime stand while the machine sleeps, the lease does not.
const LEASE_LOOK: Duration = Duration::from_millis(250);
/// How long a second process of a name asks for it: longer than the lease of one that died.
const TWIN_PATIENCE: Duration = Duration::from_secs(20);
/// How long a worker that leaves waits for the head to hear so.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);

/// What is kept until the head has it on disk.
struct Kept {
    task: TaskId,
    attempt: u32,
    ts_ms: u64,
    events: Vec<Bytes>,
    ends: bool,
    /// Their turn waits while there is too much of it.
    _ahead: Ahead,
}

pub(crate) struct Link {
    door: Door,
    facts: Facts,
    runtime: Runtime,
    models: Arc<Models>,
    /// Which link this is, counted from the start of the process.
    links: u64,
    /// Calls that the head passes on over it.
    relayed: Lane,
    reports: mpsc::UnboundedReceiver<Report>,
    outbox: Outbox<Kept>,
    /// Actors of the tasks that are running or in the outbox.
    held: HashMap<(TaskId, u32), ActorId>,
    lease: Lease,
    /// Where the Python processes find it.
    shared_lease: SharedLease,
    /// The head has welcomed this link.
    joined: bool,
    term: u64,
}

/// Why a link ended.
enum Ended {
    /// Dial again.
    Lost(String),
    /// Stop everything, and dial again.
    Fenced(String),
    /// Another process of this name is there.
    Twin(Error),
    /// Dialling again is no use.
    Refused(Error),
    /// The worker stops.
    Shutdown,
}

impl Link {
    pub fn new(
        door: Door,
        facts: Facts,
        runtime: Runtime,
        models: Arc<Models>,
        reports: mpsc::UnboundedReceiver<Report>,
        shared_lease: SharedLease,
    ) -> Self {
        Self {
            door,
            facts,
            links: 0,
            relayed: runtime.link_lane(0),
            runtime,
            models,
            reports,
            outbox: Outbox::default(),
            held: HashMap::new(),
            lease: Lease::default(),
            shared_lease,
            joined: false,
            term: 0,
        }
    }

    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut pause = RETRY_FIRST;
        let mut twin: Option<Instant> = None;
        loop {
            let ended = self.once(&shutdown).await;
            let joined = std::mem::take(&mut self.joined);
            // Every link is new to the callers behind it.
            self.links += 1;
            self.relayed = self.runtime.link_lane(self.links);
            match ended {
                Ended::Shutdown => return Ok(()),
                Ended::Refused(error) => return Err(error),
                Ended::Twin(error) if twin.is_some_and(|since| since.elapsed() > TWIN_PATIENCE) => return Err(error),
                Ended::Twin(error) if twin.is_none() => {
                    tracing::warn!(%error, "the head does not take this worker; asking again for a while");
                    twin = Some(Instant::now());
                }
                Ended::Twin(_) => {}
                Ended::Lost(reason) => {
                    match joined {
                        true => tracing::warn!(reason, kept = self.outbox.len(), "link lost; dialling again"),
                        false => tracing::debug!(reason, "dial failed"),
                    }
                    // Until the lease is over every moment counts.
                    if joined || self.lease.until().is_some() {
                        (pause, twin) = (RETRY_FIRST, None);
                    }
                }
                Ended::Fenced(reason) => {
                    self.stop_everything(&reason).await;
                    (pause, twin) = (RETRY_FIRST, None);
                }
            }
            self.rest(pause, &shutdown).await;
            pause = (pause * 2).min(RETRY_LAST);
        }
    }

    /// Waits before the next dial. What happens meanwhile is kept, or told by the next hello.
    async fn rest(&mut self, pause: Duration, shutdown: &CancellationToken) {
        let wake = tokio::time::sleep(pause);
        tokio::pin!(wake);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = &mut wake => return,
                () = passed(self.lease) => self.stop_everything(LEASE_OVER).await,
                Some(report) = self.reports.recv() => {
                    if let Report::Events { task, attempt, events, ahead } = report {
                        self.keep(task, attempt, &events, ahead);
                    }
                }
            }
        }
    }

    /// Others may do from now on what was done here.
    async fn stop_everything(&mut self, reason: &str) {
        tracing::warn!(reason, "stopping everything that runs here");
        self.runtime.stop_everything().await;
        self.lease.end();
        self.shared_lease.set(None);
    }

    async fn once(&mut self, shutdown: &CancellationToken) -> Ended {
        let lost = |e: &dyn std::fmt::Display| Ended::Lost(e.to_string());
        let (lease, door) = (self.lease, self.door.clone());
        let (asked, hello) = (boot_ms(), self.hello());
        #[expect(
            clippy::disallowed_methods,
            reason = "what is of the outbox, which has a bound; a head that takes nothing loses the link with the lease"
        )]
        let (tx, rx) = mpsc::unbounded_channel();
        let _ = tx.send(FromWorker { frames: vec![frame(Body::Hello(hello))] });
        let attach = async {
            let (mut client, bearer) = door.link().await?;
            let mut request = Request::new(UnboundedReceiverStream::new(rx));
            request.metadata_mut().insert("authorization", bearer);
            client.attach(request).await.map(tonic::Response::into_inner).map_err(|status| from_status(&status))
        };
        let attached = tokio::select! {
            () = shutdown.cancelled() => return Ended::Shutdown,
            () = passed(lease) => return Ended::Fenced(LEASE_OVER.into()),
            attached = tokio::time::timeout(ATTACH_TIMEOUT, attach) => attached,
        };
        let mut incoming = match attached {
            Err(_) => return lost(&"the head does not answer"),
            Ok(Ok(incoming)) => incoming,
            Ok(Err(error)) if error.kind == ErrorKind::AlreadyExists => return Ended::Twin(error),
            Ok(Err(error)) if error.kind == ErrorKind::Unauthenticated => {
                let again = tokio::select! {
                    () = passed(lease) => return Ended::Fenced(LEASE_OVER.into()),
                    again = door.enroll_again() => again,
                };
                return match again {
                    Ok(()) => lost(&"the head made its keys anew; enrolled again"),
                    Err(error) if enroll::is_final(&error) => Ended::Refused(error),
                    Err(error) => lost(&error),
                };
            }
            Ok(Err(error)) if enroll::is_final(&error) => {
                return Ended::Refused(enroll::about_token(error));
            }
            Ok(Err(error)) => return lost(&error),
        };
        let mut heartbeat = every(1_000);
        // Not made anew for each message: it is a timer.
        let mut over = std::pin::pin!(passed(self.lease));
        let mut group = Vec::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.leave(tx, incoming).await;
                    return Ended::Shutdown;
                }
                () = over.as_mut() => return Ended::Fenced(LEASE_OVER.into()),
                message = incoming.message() => match message {
                    Err(status) => return lost(&status.message()),
                    Ok(None) => return lost(&"the head closed it"),
                    Ok(Some(message)) => {
                        for body in message.frames.into_iter().filter_map(|f| f.body) {
                            match body {
                                head_frame::Body::Welcome(welcome) => {
                                    if welcome.term < self.term {
                                        return Ended::Refused(Error::internal("an older head answered"));
                                    }
                                    self.term = welcome.term;
                                    self.lease.granted(asked, welcome.lease_ms);
                                    self.shared_lease.set(self.lease.until());
                                    over.set(passed(self.lease));
                                    heartbeat = every(welcome.heartbeat_ms);
                                    self.joined = true;
                                    self.acknowledge(welcome.durable);
                                    self.resend(&tx);
                                    tracing::info!(head = self.door.head.address, term = welcome.term, "joined");
                                    covey_node::systemd::ready();
                                }
                                head_frame::Body::Heartbeat(beat) => {
                                    self.lease.renewed(beat.sent_ms, boot_ms());
                                    self.shared_lease.set(self.lease.until());
                                    over.set(passed(self.lease));
                                }
                                head_frame::Body::Fenced(fenced) => return Ended::Fenced(fenced.reason),
                                body => self.take(body),
                            }
                        }
                    }
                },
                count = self.reports.recv_many(&mut group, BATCH_MAX), if self.joined => {
                    if count == 0 {
                        return Ended::Shutdown;
                    }
                    for frames in covey_proto::split(self.pack(group.drain(..))) {
                        if tx.send(FromWorker { frames }).is_err() {
                            return lost(&"the link is closed");
                        }
                    }
                }
                _ = heartbeat.tick(), if self.joined => {
                    let beat = v1::Heartbeat { sent_ms: boot_ms() };
                    let _ = tx.send(FromWorker { frames: vec![frame(Body::Heartbeat(beat))] });
                }
                () = self.models.changed.notified(), if self.joined => {
                    let models = v1::ModelsReport { models: to_json(&self.models.status()) };
                    let _ = tx.send(FromWorker { frames: vec![frame(Body::Models(models))] });
                }
            }
        }
    }

    /// Stops everything, says so, and waits until the head has heard it.
    async fn leave(&mut self, tx: mpsc::UnboundedSender<FromWorker>, mut incoming: tonic::Streaming<v1::ToWorker>) {
        self.runtime.leave().await;
        let mut group = Vec::new();
        while let Ok(report) = self.reports.try_recv() {
            group.push(report);
        }
        let mut frames = self.pack(group.into_iter());
        frames.push(frame(Body::Goodbye(v1::Goodbye {})));
        for frames in covey_proto::split(frames) {
            let _ = tx.send(FromWorker { frames });
        }
        drop(tx);
        let heard = async { while let Ok(Some(_)) = incoming.message().await {} };
        let _ = tokio::time::timeout(GOODBYE_WITHIN, heard).await;
    }

    fn hello(&mut self) -> v1::Hello {
        // Reports that wait are of before this hello: actors are told by the snapshot, events go to the outbox.
        while let Ok(report) = self.reports.try_recv() {
            if let Report::Events { task, attempt, events, ahead } = report {
                self.keep(task, attempt, &events, ahead);
            }
        }
        let snapshot = self.runtime.snapshot();
        let mut tasks: Vec<_> = snapshot
            .tasks
            .iter()
            .map(|(task, attempt, actor)| v1::TaskRef {
                task: task.to_string(),
                attempt: *attempt,
                actor: actor.to_string(),
            })
            .collect();
        // An attempt that neither runs nor has its end in the outbox was stopped; the head must not wait for it.
        for (_, kept) in self.outbox.unacknowledged().filter(|(_, kept)| kept.ends) {
            let key = (kept.task.clone(), kept.attempt);
            let known = tasks.iter().any(|t| t.task == kept.task.as_str() && t.attempt == kept.attempt);
            if let (false, Some(actor)) = (known, self.held.get(&key)) {
                tasks.push(v1::TaskRef {
                    task: kept.task.to_string(),
                    attempt: kept.attempt,
                    actor: actor.to_string(),
                });
            }
        }
        v1::Hello {
            node: self.facts.node.to_string(),
            name: self.facts.name.clone(),
            incarnation: self.facts.incarnation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            resources: to_json(&self.facts.resources),
            labels: self.facts.labels.clone().into_iter().collect(),
            models: Some(v1::ModelsReport { models: to_json(&self.models.status()) }),
            actors: snapshot.actors,
            tasks,
            python: self.facts.python.clone(),
            no_python: self.facts.no_python.clone(),
            port: self.facts.port.clone(),
            machine: self.facts.machine.clone(),
            objects: self.facts.objects.folder().display().to_string(),
            isolation_least: self.facts.isolation.least.name().to_owned(),
            isolation_most: self.facts.isolation.most.name().to_owned(),
            isolation_lacks: self.facts.isolation.lacks.clone(),
        }
    }

    fn take(&mut self, body: head_frame::Body) {
        let runtime = self.runtime.clone();
        match body {
            head_frame::Body::Welcome(_) | head_frame::Body::Heartbeat(_) | head_frame::Body::Fenced(_) => {}
            head_frame::Body::Durable(durable) => self.acknowledge(durable.number),
            head_frame::Body::Start(start) => {
                runtime.keep_blobs(&start);
                tokio::spawn(async move { runtime.start(start).await });
            }
            head_frame::Body::Stop(stop) => {
                tokio::spawn(async move { runtime.stop(stop).await });
            }
            head_frame::Body::Run(run) => {
                self.held.insert((run.task.as_str().into(), run.attempt), run.actor.as_str().into());
                runtime.run_task(run);
            }
            head_frame::Body::Say(say) => runtime.say_task(&say),
            head_frame::Body::Cancel(cancel) => runtime.cancel_task(&cancel),
            head_frame::Body::SessionOver(session) => self.facts.objects.forget(&session),
            head_frame::Body::Call(call) => self.relayed.take(call),
        }
    }

    /// Frames for reports. Events of one attempt share an entry, unless an actor's news stands between them.
    fn pack(&mut self, reports: impl Iterator<Item = Report>) -> Vec<WorkerFrame> {
        let mut frames = Vec::new();
        let mut open = OpenEntries::default();
        for report in reports {
            match report {
                Report::Events { task, attempt, events, ahead } => open.push(task, attempt, events, ahead, Ahead::join),
                Report::Actor(report) => {
                    self.seal(&mut open, &mut frames);
                    frames.push(frame(Body::Actor(report)));
                }
                Report::Call(link, call) if link == self.links => frames.push(frame(Body::Call(call))),
                // A caller behind an earlier link: nobody waits for it there.
                Report::Call(..) => {}
            }
        }
        self.seal(&mut open, &mut frames);
        frames
    }

    fn seal(&mut self, open: &mut OpenEntries<Ahead>, frames: &mut Vec<WorkerFrame>) {
        for (task, attempt, events, ahead) in open.take() {
            if let Some(number) = self.keep(task, attempt, &events, ahead)
                && let Some(kept) = self.outbox.newest()
            {
                frames.push(entry(number, kept));
            }
        }
    }

    fn keep(&mut self, task: TaskId, attempt: u32, events: &[TaskEvent], ahead: Ahead) -> Option<u64> {
        let ends = events.iter().any(TaskEvent::is_terminal);
        let events = events.iter().map(to_json).collect();
        let kept = Kept { task, attempt, ts_ms: now_ms(), events, ends, _ahead: ahead };
        match self.outbox.push(kept) {
            Ok(number) => Some(number),
            Err(error) => {
                // The head has been away for a million entries; the lease ended this work long ago.
                tracing::error!(%error, "events are dropped");
                None
            }
        }
    }

    fn acknowledge(&mut self, number: u64) {
        let ended: Vec<_> = self
            .outbox
            .unacknowledged()
            .take_while(|(n, _)| *n <= number)
            .filter(|(_, kept)| kept.ends)
            .map(|(_, kept)| (kept.task.clone(), kept.attempt))
            .collect();
        for key in ended {
            self.held.remove(&key);
        }
        self.outbox.acknowledge(number);
    }

    fn resend(&self, tx: &mpsc::UnboundedSender<FromWorker>) {
        let frames: Vec<_> = self.outbox.unacknowledged().map(|(number, kept)| entry(number, kept)).collect();
        for frames in covey_proto::split(frames) {
            let _ = tx.send(FromWorker { frames });
        }
    }
}

/// Why everything stops when the head was not heard for too long.
const LEASE_OVER: &str = "the lease is over: the head did not answer in time";

/// Returns once the lease may not be acted on any more. Whenever it is polled it looks at the clock.
async fn passed(lease: Lease) {
    let Some(until) = lease.until() else { return std::future::pending().await };
    loop {
        let left: Millis = until.saturating_sub(boot_ms());
        let mut pause = std::pin::pin!(tokio::time::sleep(Duration::from_millis(left).min(LEASE_LOOK)));
        let is_over = std::future::poll_fn(|cx| match until <= boot_ms() {
            true => Poll::Ready(true),
            false => pause.as_mut().poll(cx).map(|()| false),
        });
        if is_over.await {
            return;
        }
    }
}

fn every(heartbeat_ms: u64) -> tokio::time::Interval {
    let mut every = tokio::time::interval(Duration::from_millis(heartbeat_ms.max(10)));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    every
}

fn frame(body: Body) -> WorkerFrame {
    WorkerFrame { body: Some(body) }
}

fn entry(number: u64, kept: &Kept) -> WorkerFrame {
    frame(Body::Entry(v1::OutboxEntry {
        number,
        task: kept.task.to_string(),
        attempt: kept.attempt,
        ts_ms: kept.ts_ms,
        events: kept.events.clone(),
    }))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
