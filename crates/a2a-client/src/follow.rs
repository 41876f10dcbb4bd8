//! A turn of an agent elsewhere, followed to its end over cuts of the way to it.
//!
//! Who comes back to a task is told it as it is now; what of that is new is found by laying it beside what was seen. So
//! nothing is lost or told twice with any server that keeps to the protocol, whatever ids it gives its events. One that
//! says on its card that it goes on behind a place is asked for just that.

use std::{collections::HashMap, sync::Arc, time::Duration};

use covey_a2a::{
    content::{merge, state_in},
    v1,
};
use covey_domain::{Error, ErrorKind, TaskState, caps};
use futures::{Stream, StreamExt as _};
use rand::Rng as _;
use v1::{part::Content as Held, stream_response::Payload};

use crate::{
    Agent, state_of,
    wire::{Failed, Frames},
};

/// Attempts in a row to come back to a task: about two minutes.
const TRIES_MAX: u32 = 14;
/// The same before the agent has heard anything.
const TRIES_BEFORE: u32 = 4;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Bytes that are kept of what was seen. Who has said more cannot be followed over a cut.
const SEEN_BYTES_MAX: usize = 4 * caps::MESSAGE_BYTES_MAX;

/// One task's conversation with an agent, as far as it was seen.
#[derive(Debug)]
pub struct Talk {
    agent: Arc<Agent>,
    seen: Seen,
}

impl Talk {
    /// Nothing said yet.
    pub fn new(agent: Arc<Agent>) -> Self {
        Self { agent, seen: Seen::default() }
    }

    /// The task there, once the agent has told it, unless that has ended.
    pub fn open_task(&self) -> Option<&str> {
        let ended = self.seen.status.as_ref().and_then(|s| state_in(s.state())).is_some_and(TaskState::is_terminal);
        self.seen.task.as_deref().filter(|_| !ended)
    }

    /// Sends a message and gives what comes of it, up to the end of the turn: a message, or news of a task; never a task
    /// itself. What cannot be sent or followed is an error; then nothing comes behind it.
    pub fn ask<'a>(
        &'a mut self,
        request: v1::SendMessageRequest,
        traceparent: &'a str,
    ) -> impl Stream<Item = Result<v1::StreamResponse, Error>> + Send + 'a {
        async_stream::try_stream! {
            let Self { agent, seen } = self;
            seen.over = false;
            // Until the first event it is not known whether the agent has the message.
            let mut heard = false;
            // Looks instead of listening: the task may have ended, or its server tells no news.
            let mut looks = false;
            // Where the server is known to go on behind a place, that is; else it tells the task anew.
            let mut place: Option<String> = None;
            let (mut tries, mut quiet) = (0, 0);
            loop {
                let task = seen.task.clone().filter(|_| heard);
                let mut why = "it ended too early".to_owned();
                match agent.open(&request, traceparent, task.as_deref(), place.as_deref(), looks).await {
                    Ok(mut events) => {
                        while let Some(event) = events.next().await {
                            match event {
                                Ok((at, event)) => {
                                    (heard, tries) = (true, 0);
                                    place = at.filter(|_| agent.joins);
                                    for news in seen.take(event)? {
                                        quiet = 0;
                                        yield news;
                                    }
                                    if seen.over {
                                        return;
                                    }
                                }
                                Err(Failed::Said(error)) if !heard || !passes(error.kind) => Err(error)?,
                                Err(failed) => {
                                    tries += u32::from(!heard);
                                    why = failed.into_error().message;
                                    break;
                                }
                            }
                        }
                        if (!heard && !agent.joins) || (heard && seen.task.is_none()) {
                            Err(Error::unavailable(format!("the agent's stream broke off: {why}")).executed(None))?;
                        }
                    }
                    Err(Failed::Said(error)) if !heard || looks => Err(error)?,
                    Err(Failed::Said(_)) => {
                        looks = true;
                        continue;
                    }
                    Err(failed @ Failed::Cut { sent: true, .. }) if !heard && !agent.joins => Err(failed.into_error())?,
                    Err(failed) => {
                        tries += 1;
                        why = failed.into_error().message;
                    }
                }
                if tries >= if heard { TRIES_MAX } else { TRIES_BEFORE } {
                    let executed = if heard { None } else { Some(false) };
                    Err(Error::unavailable(format!("the agent was not reached: {why}")).executed(executed))?;
                }
                quiet += 1;
                tokio::time::sleep(pause(quiet)).await;
            }
        }
    }
}

impl Agent {
    async fn open(
        &self,
        request: &v1::SendMessageRequest,
        traceparent: &str,
        task: Option<&str>,
        place: Option<&str>,
        looks: bool,
    ) -> Result<Frames, Failed> {
        let one = |event| futures::stream::once(async { Ok((None, event)) }).boxed();
        match task {
            None if self.streams => self.wire.stream(request, traceparent).await,
            None => Ok(one(self.wire.send(request, traceparent).await?)),
            Some(task) if self.streams && !looks => self.wire.subscribe(task, place).await,
            Some(task) => Ok(one(v1::StreamResponse { payload: Some(Payload::Task(self.wire.get(task).await?)) })),
        }
    }
}

/// Whether another attempt may go better.
fn passes(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Internal | ErrorKind::Overloaded | ErrorKind::DeadlineExceeded)
}

fn pause(quiet: u32) -> Duration {
    let bound = PAUSE_FIRST.saturating_mul(1 << quiet.saturating_sub(1).min(16)).min(PAUSE_MAX);
    bound.mul_f64(0.5 + rand::rng().random::<f64>() / 2.0)
}

/// What of a turn has been given on.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    task: Option<String>,
    artifacts: HashMap<String, Vec<v1::Part>>,
    bytes: usize,
    status: Option<v1::TaskStatus>,
    over: bool,
}

impl Seen {
    /// What is new in an event.
    pub fn take(&mut self, event: v1::StreamResponse) -> Result<Vec<v1::StreamResponse>, Error> {
        let state = state_of(&event);
        let news = match event.payload {
            Some(Payload::Task(task)) => self.task(task),
            Some(Payload::StatusUpdate(update)) => {
                self.task.get_or_insert_with(|| update.task_id.clone());
                self.status(update).into_iter().collect()
            }
            Some(Payload::ArtifactUpdate(update)) => {
                self.task.get_or_insert_with(|| update.task_id.clone());
                self.artifact(update).into_iter().collect()
            }
            Some(message @ Payload::Message(_)) => {
                self.over = true;
                vec![message]
            }
            None => Vec::new(),
        };
        // Who answers a question may be told first that it was asked.
        let asks = news.iter().any(|one| matches!(one, Payload::StatusUpdate(_)));
        self.over |= state.is_some_and(|state| state.is_terminal() || (state.waits() && asks));
        if self.bytes > SEEN_BYTES_MAX && !self.over {
            return Err(Error::new(ErrorKind::TooLarge, format!("the agent said more than {SEEN_BYTES_MAX} bytes")));
        }
        Ok(news.into_iter().map(|payload| v1::StreamResponse { payload: Some(payload) }).collect())
    }

    fn task(&mut self, task: v1::Task) -> Vec<Payload> {
        let (task_id, context_id) = (task.id.clone(), task.context_id.clone());
        self.task.get_or_insert_with(|| task_id.clone());
        let mut news = Vec::new();
        for artifact in task.artifacts {
            news.extend(self.artifact(v1::TaskArtifactUpdateEvent {
                task_id: task_id.clone(),
                context_id: context_id.clone(),
                artifact: Some(artifact),
                ..Default::default()
            }));
        }
        news.extend(self.status(v1::TaskStatusUpdateEvent {
            task_id,
            context_id,
            status: task.status,
            metadata: None,
        }));
        news
    }

    fn status(&mut self, update: v1::TaskStatusUpdateEvent) -> Option<Payload> {
        let said = |status: &Option<v1::TaskStatus>| status.as_ref().map(|s| (s.state, s.message.clone()));
        if said(&self.status) == said(&update.status) {
            return None;
        }
        self.status.clone_from(&update.status);
        Some(Payload::StatusUpdate(update))
    }

    fn artifact(&mut self, mut update: v1::TaskArtifactUpdateEvent) -> Option<Payload> {
        let artifact = update.artifact.as_mut()?;
        let mut known = self.artifacts.remove(&artifact.artifact_id);
        if update.append {
            let known = known.get_or_insert_default();
            self.bytes += artifact.parts.iter().map(size).sum::<usize>();
            artifact.parts.iter().for_each(|part| merge(known, part));
        } else {
            let mut whole = Vec::new();
            artifact.parts.iter().for_each(|part| merge(&mut whole, part));
            let before = known.as_deref().unwrap_or_default();
            let rest = rest(before, &whole);
            self.bytes += rest.as_deref().unwrap_or(&whole).iter().map(size).sum::<usize>();
            if let (true, Some(rest)) = (known.is_some(), rest) {
                (artifact.parts, update.append) = (rest, true);
            }
            known = Some(whole);
        }
        self.artifacts.insert(artifact.artifact_id.clone(), known.unwrap_or_default());
        let empty = update.append && artifact.parts.is_empty() && !update.last_chunk;
        (!empty).then_some(Payload::ArtifactUpdate(update))
    }
}

fn size(part: &v1::Part) -> usize {
    match &part.content {
        Some(Held::Text(text) | Held::Url(text)) => text.len(),
        Some(Held::Raw(bytes)) => bytes.len(),
        Some(Held::Data(data)) => data.0.to_string().len(),
        None => 0,
    }
}

/// What `whole` has behind `before`; none where it does not begin like that.
fn rest(before: &[v1::Part], whole: &[v1::Part]) -> Option<Vec<v1::Part>> {
    let Some((last, first)) = before.split_last() else { return Some(whole.to_vec()) };
    let tail = whole.strip_prefix(first)?;
    let (next, more) = tail.split_first()?;
    if next == last {
        return Some(more.to_vec());
    }
    let (Some(Held::Text(old)), Some(Held::Text(new))) = (&last.content, &next.content) else { return None };
    let text = new.strip_prefix(old.as_str())?;
    let grown = v1::Part { content: Some(Held::Text(text.to_owned())), ..next.clone() };
    Some(std::iter::once(grown).chain(more.iter().cloned()).collect())
}

#[cfg(test)]
mod tests {
    use covey_a2a::content::text_part;

    use super::*;

    fn chunk(text: &str, append: bool) -> v1::StreamResponse {
        let artifact =
            v1::Artifact { artifact_id: "a".into(), parts: vec![text_part(text)], ..v1::Artifact::default() };
        let update =
            v1::TaskArtifactUpdateEvent { task_id: "t".into(), artifact: Some(artifact), append, ..Default::default() };
        v1::StreamResponse { payload: Some(Payload::ArtifactUpdate(update)) }
    }

    fn snapshot(text: &str, state: v1::TaskState) -> v1::StreamResponse {
        let artifact =
            v1::Artifact { artifact_id: "a".into(), parts: vec![text_part(text)], ..v1::Artifact::default() };
        let status = v1::TaskStatus { state: state.into(), ..v1::TaskStatus::default() };
        let task = v1::Task { id: "t".into(), status: Some(status), artifacts: vec![artifact], ..v1::Task::default() };
        v1::StreamResponse { payload: Some(Payload::Task(task)) }
    }

    /// What a reader has that takes all the news.
    fn read(seen: &mut Seen, events: impl IntoIterator<Item = v1::StreamResponse>, text: &mut String) {
        for event in events {
            for news in seen.take(event).unwrap() {
                let Some(Payload::ArtifactUpdate(update)) = news.payload else { continue };
                if !update.append {
                    text.clear();
                }
                for part in update.artifact.unwrap().parts {
                    let Some(Held::Text(more)) = part.content else { panic!("text was sent") };
                    text.push_str(&more);
                }
            }
        }
    }

    #[test]
    fn who_comes_back_gets_the_rest() {
        let (mut seen, mut text) = (Seen::default(), String::new());
        read(&mut seen, [chunk("one ", true), chunk("two ", true)], &mut text);
        read(&mut seen, [snapshot("one two three ", v1::TaskState::Working), chunk("four", true)], &mut text);
        assert_eq!((text.as_str(), seen.over), ("one two three four", false));
        read(&mut seen, [snapshot("one two three four five", v1::TaskState::Completed)], &mut text);
        assert_eq!((text.as_str(), seen.over), ("one two three four five", true));
    }

    #[test]
    fn what_was_made_anew_is_told_anew() {
        let (mut seen, mut text) = (Seen::default(), String::new());
        read(&mut seen, [chunk("one ", true), chunk("two ", true)], &mut text);
        read(&mut seen, [snapshot("another", v1::TaskState::Working)], &mut text);
        assert_eq!(text, "another");
    }

    #[test]
    fn a_status_is_told_once() {
        let mut seen = Seen::default();
        let told = |events: Vec<v1::StreamResponse>| events.len();
        assert_eq!(told(seen.take(snapshot("x", v1::TaskState::Working)).unwrap()), 2);
        assert_eq!(told(seen.take(snapshot("x", v1::TaskState::Working)).unwrap()), 0);
        assert_eq!(told(seen.take(snapshot("x", v1::TaskState::InputRequired)).unwrap()), 1);
        assert!(seen.over);
        seen.over = false;
        seen.take(snapshot("x", v1::TaskState::InputRequired)).unwrap();
        assert!(!seen.over, "the question was answered; it is only told again");
    }

    #[test]
    fn parts_of_every_kind_are_laid_beside_each_other() {
        let file = v1::Part { content: Some(Held::Raw(vec![1, 2])), ..v1::Part::default() };
        let parts = [text_part("a"), file.clone()];
        assert_eq!(rest(&parts, &[text_part("a"), file.clone(), text_part("b")]), Some(vec![text_part("b")]));
        assert_eq!(rest(&parts, &[text_part("a"), file.clone()]), Some(vec![]));
        assert_eq!(rest(&parts, &[text_part("a")]), None);
        assert_eq!(rest(&[text_part("ab")], &[text_part("abc"), file.clone()]), Some(vec![text_part("c"), file]));
    }
}
