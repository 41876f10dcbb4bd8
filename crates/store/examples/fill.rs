//! Fills a store with tasks: `fill FOLDER ENDED UNFINISHED`. For `benches/start.py`.

use std::{path::Path, sync::Arc};

use covey_domain::{
    Envelope, TaskEvent, TaskRecord, TaskState,
    event::{Content, Outcome, Phase},
    task::TaskInput,
};
use covey_store::{Batch, Capacity, Store};

/// Tasks of one batch.
const BATCH: usize = 1_000;

fn task(n: usize, state: TaskState) -> (Arc<TaskRecord>, Vec<Arc<Envelope>>) {
    let id = format!("task-{n:012x}{:032x}", (n as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834));
    let record = TaskRecord {
        id: id.as_str().into(),
        context: format!("ctx-{n:044x}").into(),
        agent: "echo".into(),
        skill: "run".into(),
        caller: "owner".into(),
        message_id: Some(format!("message-{n}")),
        model: None,
        protocol: "a2a".into(),
        input: Arc::new(TaskInput { content: vec![Content::Text(format!("word {n}"))], ..TaskInput::default() }),
        state,
        created_ms: 1_700_000_000_000 + n as u64,
        changed_ms: 1_700_000_000_000 + n as u64,
        timeout_ms: None,
        expires_ms: None,
        attempt: u32::from(state.is_terminal()),
    };
    let mut events = vec![TaskEvent::Started {
        agent: "echo".into(),
        context: record.context.clone(),
        skill: "run".into(),
        model: None,
        protocol: "a2a".into(),
        parent: None,
        resumes: Vec::new(),
    }];
    if state.is_terminal() {
        let outcome = Outcome::Completed { finish: "stop".into(), result: Some(format!("word {n}").into()) };
        events.extend([
            TaskEvent::Status { state: Phase::Working, message: None },
            TaskEvent::StepStarted { step: 1, name: "attempt 1".into() },
            TaskEvent::StepFinished { step: 1, finish: None, usage: None },
            TaskEvent::Finished { outcome, usage: Default::default() },
        ]);
    }
    let envelope = |(event, seq)| {
        let (task, ts_ms, meta) = (record.id.clone(), record.created_ms, Default::default());
        Arc::new(Envelope { task, seq, ts_ms, sub: None, event, meta })
    };
    let events = events.into_iter().zip(1..).map(envelope).collect();
    (Arc::new(record), events)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().collect();
    let [_, folder, ended, unfinished] = &args[..] else { return Err("fill FOLDER ENDED UNFINISHED".into()) };
    let (ended, unfinished): (usize, usize) = (ended.parse()?, unfinished.parse()?);
    std::fs::create_dir_all(folder)?;
    let store = Store::open(&Path::new(folder).join("covey.db")).await?;
    store.begin().await?;
    let states =
        (0..ended + unfinished).map(|n| (n, if n < ended { TaskState::Completed } else { TaskState::Submitted }));
    let all: Vec<_> = states.collect();
    for part in all.chunks(BATCH) {
        while store.capacity() == Capacity::Behind {
            store.caught_up(std::time::Duration::from_secs(1)).await;
        }
        let mut batch = Batch::default();
        for (n, state) in part {
            let (record, events) = task(*n, *state);
            batch.made.push(record);
            batch.events.extend(events);
        }
        let written = store.write(batch)?;
        store.sync(vec![written])?;
    }
    // Who lists waits for the tables.
    store.tasks(Default::default(), "", 1).await?;
    Ok(())
}
