//! Answers that are made on the way, and those that are made in turn.

use covey_domain::{TaskEvent, TaskState, event::Content, log::Writer, task::TaskInput};
use parking_lot::Mutex;

use super::*;
use crate::{
    Caller,
    fake::{CUT, Fake, Letters, asks, begun, finished, record},
};

/// A task whose turn says `text` and asks.
fn cluster(text: &str) -> Fake {
    let cluster = Fake::new([]);
    let mut events = begun();
    events.extend(Writer::new("t".into(), 1).text(text));
    events.extend(asks("q"));
    events.extend(Writer::new("t".into(), 2).text("more"));
    cluster.keep(record("t"), events);
    cluster
}

/// The answer to what was done to a task, and how often it was written.
async fn answer(cluster: &Fake, record: Arc<TaskRecord>, until: Until) -> (Result<Option<String>, Error>, usize) {
    let (caller, answers, written) = (Caller::of_all("me".into()), Answers::default(), Mutex::new(0));
    let tasks = Tasks { cluster, caller: &caller, agent: None };
    let write = |letters: Letters| {
        *written.lock() += 1;
        Ok((letters.text, 1))
    };
    let made: Result<_, Failure> = done(tasks, &answers, record, until, write).await;
    (made.map(|(text, _)| text).map_err(Error::from), *written.lock())
}

#[tokio::test]
async fn an_answer_has_the_log_as_far_as_is_said() {
    let cluster = cluster("ab");
    let of = async |until| answer(&cluster, Arc::new(record("t")), until).await.0.unwrap().unwrap();
    assert_eq!(of(Until::Over(1)).await, "ab");
    assert_eq!(of(Until::End).await, "abmore");
    assert_eq!(of(Until::Seq(2)).await, "");
}

#[tokio::test]
async fn a_large_answer_is_made_of_the_same_entries_when_it_is_its_turn() {
    let text = "x".repeat(SMALL + 1);
    let cluster = cluster(&text);
    let (found, written) = answer(&cluster, Arc::new(record("t")), Until::Over(1)).await;
    assert_eq!((found.unwrap(), written), (Some(text), 1));
    let ended = TaskRecord { state: TaskState::Completed, ..record("t") };
    let (found, _) = answer(&cluster, Arc::new(ended), Until::Over(1)).await;
    assert!(found.unwrap().is_some(), "nothing is read on the way of a task that has ended");
}

#[tokio::test]
async fn what_was_read_on_the_way_is_let_go_once_it_is_large() {
    let cluster = cluster(&"x".repeat(SMALL + 1));
    let log = cluster.tasks.lock()[&TaskId::from("t")].1.clone();
    let asked = log.iter().find(|entry| matches!(entry.event, TaskEvent::InterruptRaised { .. })).unwrap();
    let (projection, seq) = reach::<Letters>(&cluster, Arc::new(record("t")), Until::Over(1)).await.unwrap();
    assert!(projection.is_none());
    assert_eq!(seq, asked.seq, "the turn is over with the question");
}

#[tokio::test]
async fn failures_say_of_what_they_are() {
    let cluster = cluster("ab");
    let mut events = begun();
    events.push(TaskEvent::Custom { name: CUT.into(), value: serde_json::Value::Null });
    events.extend(finished(Writer::new("cut".into(), 1), None));
    let cut = cluster.keep(record("cut"), events);
    let (caller, answers) = (Caller::of_all("me".into()), Answers::default());
    let tasks = Tasks { cluster: &cluster, caller: &caller, agent: None };
    let write = |letters: Letters| Ok((letters.text, 1));
    let made: Result<_, Failure> = done(tasks, &answers, cut, Until::End, write).await;
    assert!(matches!(made.unwrap_err(), Failure::Log(id, _) if id.as_str() == "cut"));
    let gone = Arc::new(TaskRecord { state: TaskState::Completed, ..record("gone") });
    let made: Result<_, Failure> = done(tasks, &answers, gone, Until::End, write).await;
    assert!(matches!(made.unwrap_err(), Failure::Task(id, _) if id.as_str() == "gone"));
}

#[tokio::test]
async fn a_request_that_waits_for_its_turn_holds_nothing() {
    let cluster = Arc::new(Fake::new([]));
    let content = vec![Content::Text("x".repeat(1 << 20))];
    let input = Arc::new(TaskInput { content, ..Default::default() });
    let kept = cluster.keep(TaskRecord { input, ..record("t") }, begun());
    let (answers, caller, held) = (Answers::default(), Caller::of_all("me".into()), Arc::strong_count(&kept));
    let waits = || {
        let (answers, cluster, caller) = (answers.clone(), cluster.clone(), caller.clone());
        async move {
            let make = async |mut turn: Turn| {
                let tasks = Tasks { cluster: &*cluster, caller: &caller, agent: None };
                let (record, _) = find_in(&tasks, &mut turn, &"t".into()).await?;
                let folded: Letters = replay(&*cluster, record, Until::End, &mut turn).await?;
                Ok::<_, Failure>((folded, 1))
            };
            answers.read(&caller.id, make).await.map(|(folded, _)| folded.seq()).map_err(Error::from)
        }
    };
    let make = async |mut turn: Turn| {
        turn.weighs(usize::MAX).await?;
        let waiting = tokio::spawn(waits());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        assert_eq!(Arc::strong_count(&kept), held);
        Ok::<_, Full>((waiting, 1))
    };
    let (waiting, _) = answers.read(&caller.id, make).await.unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(2));
}
