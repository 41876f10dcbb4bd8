//! How long the head's verbs take with many tasks: a row a verb, a column a number of tasks; mean and worst, in microseconds. The
//! owner does one verb after the other, so the worst is what everybody waits. No verb may take 10 ms.
//!
//! `cargo run --release -p covey-benches --bin head-verbs [TASKS …]`

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use covey_cluster_core::{
    Head, HeadConfig, Output,
    head::{ActorReport, Command, Entry, Hello, Stored, Submission},
};
use covey_domain::{
    ActorId, AgentSpec, Epoch, NodeId, Resources, TaskEvent, TaskId, TaskRecord, TaskState, event::Outcome,
};

/// What a verb may take.
const WORST: Duration = Duration::from_millis(10);
/// How often each is done.
const ROUNDS: usize = 2_000;
/// Actors of the one node.
const ACTORS: u64 = 64;

fn submission(id: String) -> Submission {
    Submission {
        id: id.as_str().into(),
        context: "c".into(),
        caller: "me".into(),
        agent: "a".into(),
        skill: None,
        input: Default::default(),
        message_id: Some(id),
        model: None,
        protocol: "bench".into(),
        timeout_ms: Some(1_000_000),
        looked_at: u64::MAX,
        tasks_max: usize::MAX,
        refused: None,
    }
}

fn stored(n: usize) -> Stored {
    let id = format!("old-{n}");
    let record = TaskRecord {
        id: id.as_str().into(),
        context: "c".into(),
        agent: "a".into(),
        skill: "run".into(),
        caller: "me".into(),
        message_id: Some(id),
        model: None,
        protocol: "bench".into(),
        input: Default::default(),
        state: TaskState::Submitted,
        created_ms: 0,
        changed_ms: 0,
        // A quarter runs out of time while the bench looks, all at once.
        timeout_ms: n.is_multiple_of(4).then_some(50_000),
        expires_ms: None,
        attempt: 0,
    };
    let mut events = vec![TaskEvent::Started {
        agent: "a".into(),
        context: "c".into(),
        skill: "run".into(),
        model: None,
        protocol: "bench".into(),
        parent: None,
        resumes: Vec::new(),
    }];
    // Another quarter ran when the head died.
    if n % 4 == 1 {
        events.push(TaskEvent::StepStarted { step: 1, name: "attempt 1".into() });
    }
    let attempt = u32::from(n % 4 == 1);
    Stored { record: TaskRecord { attempt, ..record }, events, broken: None }
}

/// A head, its worker, and what the worker was told to run.
struct World {
    head: Head,
    node: NodeId,
    entries: u64,
    running: Vec<(TaskId, u32)>,
    starting: Vec<(ActorId, Epoch)>,
    took: BTreeMap<&'static str, Vec<Duration>>,
}

impl World {
    fn new(tasks: usize) -> Self {
        let mut head = Head::new(HeadConfig::default(), 1);
        let spec =
            serde_json::json!({"name": "a", "kind": {"type": "native", "implementation": "echo"}, "pool": ACTORS});
        let spec: AgentSpec = serde_json::from_value(spec).expect("a valid agent");
        head.register(spec, 0).expect("a valid agent");
        (0..tasks).for_each(|n| head.restore(stored(n), 0));
        let (running, starting) = (Vec::new(), Vec::new());
        Self { head, node: "n".into(), entries: 0, running, starting, took: BTreeMap::new() }
    }

    /// One verb and what it leads to, timed.
    fn verb<T>(&mut self, name: &'static str, verb: impl FnOnce(&mut Head) -> T) -> T {
        let begin = Instant::now();
        let done = verb(&mut self.head);
        let mut outputs = Vec::new();
        while let Some(output) = self.head.poll_output() {
            outputs.push(output);
        }
        self.took.entry(name).or_default().push(begin.elapsed());
        for output in outputs {
            match output {
                Output::Send(_, Command::Start { actor, epoch, .. }) => self.starting.push((actor, epoch)),
                Output::Send(_, Command::Run { record, .. }) => self.running.push((record.id.clone(), record.attempt)),
                _ => {}
            }
        }
        done
    }

    fn start_actors(&mut self, now: u64) {
        let node = self.node.clone();
        for (actor, epoch) in std::mem::take(&mut self.starting) {
            self.verb("actor started", |head| head.actor_report(&node, &actor, epoch, ActorReport::Live, now));
        }
    }

    fn run(&mut self) {
        let node = self.node.clone();
        let total = Resources { cpu_milli: 1_000 * ACTORS, ..Resources::default() };
        let hello = Hello { incarnation: 1, name: "n".into(), total, ..Hello::default() };
        self.verb("worker joins", |head| head.joined(&node, 1, hello, 0)).expect("the first of its name");
        self.start_actors(0);
        for n in 0..ROUNDS {
            let ask = submission(format!("new-{n}"));
            let _ = self.verb("submit", |head| head.submit(ask, 1));
            self.start_actors(1);
            let Some((task, attempt)) = self.running.pop() else { continue };
            self.entries += 1;
            let outcome = Outcome::Completed { finish: "stop".into(), result: None };
            let events = vec![
                TaskEvent::StepFinished { step: attempt, finish: None, usage: None },
                TaskEvent::Finished { outcome, usage: BTreeMap::new() },
            ];
            let entry = Entry { number: self.entries, task, attempt, ts_ms: 1, events: Ok(events) };
            self.verb("task ends", |head| head.entry(&node, 1, entry, 1)).expect("entries are in order");
            let waiting = TaskId::from(format!("old-{}", 4 * n + 2));
            let _ = self.verb("cancel", |head| head.cancel_task(&waiting, "me", "bench", 1));
            self.verb("tick", |head| head.tick(1));
        }
        (0..50).for_each(|_| drop(self.verb("status", |head| head.status())));
        self.head.heard(&node, 1, 4_000);
        while self.verb("tick, orphans", |head| head.tick(4_000)) {}
        self.head.heard(&node, 1, 12_000);
        self.head.heard(&node, 1, 50_000);
        while self.verb("tick, deadlines", |head| head.tick(50_000)) {}
    }
}

fn main() -> std::process::ExitCode {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    let sizes = if asked.is_empty() { vec![1_000, 10_000, 100_000, 1_000_000] } else { asked };
    let mut table: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut slow = Vec::new();
    for size in &sizes {
        let mut world = World::new(*size);
        world.run();
        for (verb, mut took) in std::mem::take(&mut world.took) {
            took.sort();
            let mean = took.iter().sum::<Duration>() / took.len() as u32;
            // The kernel may take the processor away once in a while; that is not the verb's.
            let worst = took[(took.len() - 1).min(took.len() * 999 / 1_000)];
            table.entry(verb).or_default().push(format!("{} / {}", mean.as_micros(), worst.as_micros()));
            if worst > WORST {
                slow.push(format!("{verb} with {size} tasks: {} ms", worst.as_millis()));
            }
        }
    }
    println!(
        "| verb, mean / p99.9 in µs | {} |",
        sizes.iter().map(|n| format!("{n} tasks")).collect::<Vec<_>>().join(" | ")
    );
    println!("|---|{}", "---|".repeat(sizes.len()));
    for (verb, cells) in table {
        println!("| {verb} | {} |", cells.join(" | "));
    }
    slow.iter().for_each(|line| eprintln!("too slow: {line}"));
    std::process::ExitCode::from(u8::from(!slow.is_empty()))
}
