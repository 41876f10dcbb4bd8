//! The worker's end of the link: dial, say hello, work, dial again.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use covey_actor_runtime::{Lane, Models, Report, Runtime};
use covey_cluster_core::link::Outbox;
use covey_domain::{ActorId, Error, TaskEvent, TaskId};
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
};

/// Reports put into one message.
const BATCH_MAX: usize = 1_024;

/// What is kept until the head has it on disk.
struct Kept {
    task: TaskId,
    attempt: u32,
    ts_ms: u64,
    events: Vec<Bytes>,
    ends: bool,
}

/// Events that wait for others of their attempt, in the order of the first ones.
#[derive(Default)]
struct Open {
    entries: Vec<(TaskId, u32, Vec<TaskEvent>)>,
    at: HashMap<(TaskId, u32), usize>,
}

impl Open {
    fn push(&mut self, task: TaskId, attempt: u32, events: Vec<TaskEvent>) {
        if let Some((last, of, all)) = self.entries.last_mut()
            && (&*last, *of) == (&task, attempt)
        {
            return all.extend(events);
        }
        let at = *self.at.entry((task.clone(), attempt)).or_insert(self.entries.len());
        match self.entries.get_mut(at) {
            Some((_, _, all)) => all.extend(events),
            None => self.entries.push((task, attempt, events)),
        }
    }
}

pub(crate) struct Link {
    door: Door,
    facts: Facts,
    runtime: Runtime,
    models: Arc<Models>,
    /// Calls that the head passes on.
    relayed: Lane,
    reports: mpsc::UnboundedReceiver<Report>,
    outbox: Outbox<Kept>,
    /// Actors of the tasks that are running or in the outbox.
    held: HashMap<(TaskId, u32), ActorId>,
    lease: Duration,
    heard: Instant,
    term: u64,
}

/// Why a link ended.
enum Ended {
    /// Dial again.
    Lost(String),
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
    ) -> Self {
        Self {
            door,
            facts,
            relayed: runtime.link_lane(),
            runtime,
            models,
            reports,
            outbox: Outbox::default(),
            held: HashMap::new(),
            lease: Duration::from_secs(10),
            heard: Instant::now(),
            term: 0,
        }
    }

    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut pause = RETRY_FIRST;
        let mut fenced = true;
        loop {
            let began = Instant::now();
            let ended = self.once(&shutdown).await;
            // Every link is new to the callers behind it.
            self.relayed.cancel_all();
            match ended {
                Ended::Shutdown => return Ok(()),
                Ended::Refused(error) => return Err(error),
                Ended::Lost(reason) => {
                    if self.heard > began {
                        tracing::warn!(reason, kept = self.outbox.len(), "link lost; dialling again");
                        pause = RETRY_FIRST;
                        fenced = false;
                    } else {
                        tracing::debug!(reason, "dial failed");
                    }
                }
            }
            // What happens while there is no link is kept, or told by the next hello.
            let wake = tokio::time::sleep(pause);
            tokio::pin!(wake);
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = &mut wake => break,
                    Some(report) = self.reports.recv() => {
                        if let Report::Events { task, attempt, events } = report {
                            self.keep(task, attempt, &events);
                        }
                    }
                }
            }
            pause = (pause * 2).min(RETRY_LAST);
            if !fenced && self.heard.elapsed() > self.lease {
                tracing::warn!("the lease ran out; stopping all actors");
                self.runtime.stop_everything().await;
                fenced = true;
            }
        }
    }

    async fn once(&mut self, shutdown: &CancellationToken) -> Ended {
        let lost = |e: &dyn std::fmt::Display| Ended::Lost(e.to_string());
        let (mut client, bearer) = tokio::select! {
            () = shutdown.cancelled() => return Ended::Shutdown,
            opened = self.door.link() => match opened {
                Ok(opened) => opened,
                Err(error) if enroll::is_final(&error) => return Ended::Refused(error),
                Err(error) => return lost(&error),
            },
        };
        let (tx, rx) = mpsc::unbounded_channel();
        let _ = tx.send(FromWorker { frames: vec![frame(Body::Hello(self.hello()))] });
        let mut request = Request::new(UnboundedReceiverStream::new(rx));
        request.metadata_mut().insert("authorization", bearer);
        let mut incoming = match client.attach(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => {
                let error = from_status(&status);
                let final_word = enroll::is_final(&error);
                return if final_word {
                    Ended::Refused(error.hint("`covey token` on the head's machine prints a join token"))
                } else {
                    lost(&error)
                };
            }
        };
        let mut heartbeat = tokio::time::interval(Duration::from_millis(1_000));
        let mut welcomed = false;
        let mut group = Vec::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ended::Shutdown,
                message = tokio::time::timeout(self.lease, incoming.message()) => match message {
                    Err(_) => return lost(&"the head is silent"),
                    Ok(Err(status)) => return lost(&status.message()),
                    Ok(Ok(None)) => return lost(&"the head closed it"),
                    Ok(Ok(Some(message))) => {
                        self.heard = Instant::now();
                        for body in message.frames.into_iter().filter_map(|f| f.body) {
                            if let head_frame::Body::Welcome(welcome) = &body {
                                if welcome.term < self.term {
                                    return Ended::Refused(Error::internal("an older head answered"));
                                }
                                self.term = welcome.term;
                                self.lease = Duration::from_millis(welcome.lease_ms);
                                heartbeat = tokio::time::interval(Duration::from_millis(welcome.heartbeat_ms.max(10)));
                                welcomed = true;
                                self.acknowledge(welcome.durable);
                                self.resend(&tx);
                                tracing::info!(head = self.door.head.address, term = welcome.term, "joined");
                            } else {
                                self.take(body);
                            }
                        }
                    }
                },
                count = self.reports.recv_many(&mut group, BATCH_MAX), if welcomed => {
                    if count == 0 {
                        return Ended::Shutdown;
                    }
                    for frames in covey_proto::split(self.pack(group.drain(..))) {
                        if tx.send(FromWorker { frames }).is_err() {
                            return lost(&"the link is closed");
                        }
                    }
                }
                _ = heartbeat.tick(), if welcomed => {
                    let beat = v1::Heartbeat { sent_ms: now_ms() };
                    let _ = tx.send(FromWorker { frames: vec![frame(Body::Heartbeat(beat))] });
                }
                () = self.models.changed.notified(), if welcomed => {
                    let models = v1::ModelsReport { models: to_json(&self.models.status()) };
                    let _ = tx.send(FromWorker { frames: vec![frame(Body::Models(models))] });
                }
            }
        }
    }

    fn hello(&mut self) -> v1::Hello {
        // Reports that wait are of before this hello: actors are told by the snapshot, events go to the outbox.
        while let Ok(report) = self.reports.try_recv() {
            if let Report::Events { task, attempt, events } = report {
                self.keep(task, attempt, &events);
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
            port: self.facts.port.clone(),
            machine: self.facts.machine.clone(),
            objects: self.facts.objects.folder().display().to_string(),
        }
    }

    fn take(&mut self, body: head_frame::Body) {
        let runtime = self.runtime.clone();
        match body {
            head_frame::Body::Welcome(_) | head_frame::Body::Heartbeat(_) => {}
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
        let mut open = Open::default();
        for report in reports {
            match report {
                Report::Events { task, attempt, events } => open.push(task, attempt, events),
                Report::Actor(report) => {
                    self.seal(&mut open, &mut frames);
                    frames.push(frame(Body::Actor(report)));
                }
                Report::Call(call) => frames.push(frame(Body::Call(call))),
            }
        }
        self.seal(&mut open, &mut frames);
        frames
    }

    fn seal(&mut self, open: &mut Open, frames: &mut Vec<WorkerFrame>) {
        let Open { entries, .. } = std::mem::take(open);
        for (task, attempt, events) in entries {
            if let Some(number) = self.keep(task, attempt, &events)
                && let Some(kept) = self.outbox.newest()
            {
                frames.push(entry(number, kept));
            }
        }
    }

    fn keep(&mut self, task: TaskId, attempt: u32, events: &[TaskEvent]) -> Option<u64> {
        let ends = events.iter().any(TaskEvent::is_terminal);
        let kept = Kept { task, attempt, ts_ms: now_ms(), events: events.iter().map(to_json).collect(), ends };
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
