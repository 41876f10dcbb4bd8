//! Readers that leave and come back, and where they end.

use std::fmt::Debug;

use covey_domain::{TaskEvent, log::Writer};
use proptest::prelude::*;

use super::*;
use crate::fake::{CUT, Fake, Letters, answers, asks, begun, finished, record};

async fn told<P: Projection>(
    cluster: &Fake,
    projection: P,
    view: View,
    bookmarks: Option<Bookmarks<P::Bookmark>>,
) -> Vec<StreamItem<P::Frame>> {
    let frames = follow(cluster, "t".into(), projection, view, bookmarks);
    frames.map(|told| told.expect("the log is whole")).collect().await
}

/// Checks that whoever comes back behind any frame of a log is told what one is who never left: read from the beginning and from each
/// place that may be remembered, to the end of the task and of every turn. And that a snapshot stands for what is before it.
pub(crate) async fn check_every_place<P>(events: Vec<TaskEvent>, begin: impl Fn(Option<P::Bookmark>) -> P)
where
    P: Projection,
    P::Frame: Clone + Debug + PartialEq,
{
    let (cluster, last) = (Fake::new([]), events.len() as u64);
    cluster.keep(record("t"), events);
    let log: Vec<_> = cluster.tasks.lock()[&TaskId::from("t")].1.clone();
    let whole = told(&cluster, begin(None), View::default(), None).await;
    assert!(whole.is_sorted_by(|a, b| a.cursor < b.cursor), "each frame has a cursor of its own");
    // The place behind each entry, as one reads it who was there from the beginning.
    let mut first = begin(None);
    for seq in 0..=last {
        let bookmarks = Bookmarks::default();
        bookmarks.keep(&"t".into(), seq, first.bookmark());
        for (at, seen) in (1..).zip(&whole).filter(|(_, seen)| seen.cursor.seq >= seq) {
            let view = View { seen: seen.cursor, ..View::default() };
            let place = view.bookmark(&bookmarks, &"t".into());
            assert!(place.is_some());
            let later = told(&cluster, begin(place), view, None).await;
            assert_eq!(later, whole[at..], "behind {}, from entry {seq}", seen.cursor);
        }
        if let Some(entry) = log.get(seq as usize) {
            first.push(entry);
        }
    }
    let mut fold = begin(None);
    for entry in &log {
        fold.push(entry);
        let turn = View { turn: Some(entry.seq), ..View::default() };
        let of_turn = told(&cluster, begin(None), turn, None).await;
        assert!(whole.iter().map(|told| &told.frame).zip(&of_turn).all(|(a, b)| *a == b.frame));
        for (at, seen) in (1..).zip(&of_turn) {
            let later = told(&cluster, begin(None), View { seen: seen.cursor, ..turn }, None).await;
            assert_eq!(later, of_turn[at..], "behind {}, turn of {}", seen.cursor, entry.seq);
        }
    }
    for at in 1..=last {
        let mut shown = begin(None);
        log.iter().take(at as usize).for_each(|entry| drop(shown.push(entry)));
        let Some(frame) = shown.snapshot() else { continue };
        let view = View { snapshot: Some(at), ..View::default() };
        let later = told(&cluster, begin(None), view, None).await;
        let (snapshot, later) = later.split_first().unwrap();
        assert_eq!((snapshot.cursor, &snapshot.frame), (Cursor { seq: at, more: 0 }, &frame));
        let behind: Vec<_> = whole.iter().filter(|told| told.cursor > snapshot.cursor).cloned().collect();
        assert_eq!(later, behind, "behind the snapshot of {at}");
    }
}

/// Logs of turns: words of different lengths, attempts that are lost, questions and answers, with an end or without one.
pub(crate) fn logs() -> impl Strategy<Value = Vec<TaskEvent>> {
    let step = (0..5_u8, "[a-z]{0,4}");
    (prop::collection::vec(step, 0..8), any::<bool>()).prop_map(|(steps, ends)| {
        let mut events = begun();
        let mut writer = Writer::new("t".into(), 1);
        for (kind, word) in steps {
            match kind {
                0 => events.extend(asks("q")),
                1 => events.extend(answers("q", &word, None)),
                2 => events.push(TaskEvent::StepReset { step: 1 }),
                _ => events.extend(writer.text(&word)),
            }
        }
        if ends {
            events.extend(finished(writer, None));
        }
        events
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_reader_who_comes_back_is_told_the_same_from_every_place(events in logs()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check_every_place(events, Letters::begin));
    }
}

/// Text, a question, its answer, text, the end: the frames of each, and the numbers of the entries that end a turn.
fn two_turns() -> Fake {
    let mut writer = Writer::new("t".into(), 1);
    let mut events = begun();
    events.extend(writer.text("ab"));
    events.extend(asks("q"));
    events.extend(answers("q", "yes", None));
    events.extend(writer.text("c"));
    events.extend(finished(writer, None));
    let cluster = Fake::new([]);
    cluster.keep(record("t"), events);
    cluster
}

fn frames(told: &[StreamItem<String>]) -> Vec<&str> {
    told.iter().map(|told| told.frame.as_str()).collect()
}

#[tokio::test]
async fn a_view_of_a_turn_ends_with_the_turn_and_others_with_the_task() {
    let cluster = two_turns();
    let of = async |view| told(&cluster, Letters::begin(None), view, None).await;
    let turn = |at| View { turn: Some(at), ..View::default() };
    assert_eq!(frames(&of(turn(1)).await), ["0a", "1b"]);
    let waits = cluster.tasks.lock()[&TaskId::from("t")]
        .1
        .iter()
        .position(|entry| matches!(entry.event, TaskEvent::InterruptResolved { .. }));
    let answered = waits.unwrap() as u64 + 3;
    let snapshot = of(View { snapshot: Some(answered), ..turn(answered) }).await;
    assert_eq!(frames(&snapshot), ["ab", "2c"]);
    assert_eq!(frames(&of(View::default()).await), ["0a", "1b", "2c"]);
}

#[tokio::test]
async fn a_log_that_breaks_off_says_where_the_reader_stands() {
    let cluster = Fake::new([]);
    let mut events = begun();
    events.extend(Writer::new("t".into(), 1).text("ab"));
    events.push(TaskEvent::Custom { name: CUT.into(), value: serde_json::Value::Null });
    let text = events.len() as u64 - 1;
    cluster.keep(record("t"), events);
    let all: Vec<_> = follow(&cluster, "t".into(), Letters::begin(None), View::default(), None).collect().await;
    let [Ok(_), Ok(last), Err(broken)] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((last.cursor, broken.cursor), (Cursor { seq: text, more: 0 }, Cursor { seq: text, more: 0 }));
}

#[tokio::test]
async fn places_are_remembered_on_the_way_and_read_on_from() {
    let cluster = Fake::new([]);
    let mut writer = Writer::new("t".into(), 1);
    let mut events = begun();
    (0..3_000).for_each(|_| events.extend(writer.text("x")));
    cluster.keep(record("t"), events);
    let bookmarks = Bookmarks::default();
    let whole = told(&cluster, Letters::begin(None), View::default(), Some(bookmarks.clone())).await;
    let view = View { seen: whole[2_500].cursor, ..View::default() };
    let place = view.bookmark(&bookmarks, &"t".into()).unwrap();
    assert_eq!(place.0, 2_048);
    assert_eq!(told(&cluster, Letters::begin(Some(place)), view, None).await, whole[2_501..]);
    let snapshot = View { snapshot: Some(2_500), ..view };
    assert!(snapshot.bookmark(&bookmarks, &"t".into()).is_none(), "it is put together from the beginning");
}
