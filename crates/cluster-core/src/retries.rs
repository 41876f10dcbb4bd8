//! Tasks whose agent raised an exception that is worth another try: when they are tried again, and how often.

use covey_domain::{
    Error, Millis, TaskId,
    event::{Outcome, Phase, TaskEvent},
};

use crate::head::Head;

/// How a step ended whose task is tried again.
const RETRY: &str = "retry";

/// The end of a run after which the task was tried again.
pub(crate) fn is_retry(event: &TaskEvent) -> bool {
    matches!(event, TaskEvent::StepFinished { finish: Some(finish), .. } if finish == RETRY)
}

impl Head {
    /// What the agent raised, where these events end a task that may be tried again after it.
    pub(crate) fn worth_another_try(&self, id: &TaskId, events: &[TaskEvent]) -> Option<Error> {
        let Some(TaskEvent::Finished { outcome: Outcome::Failed { error }, .. }) = events.last() else { return None };
        let task = self.tasks.active.get(id)?;
        let retry = task.record.input.retry.as_ref()?;
        (error.retry && task.retried < retry.max).then(|| error.clone())
    }

    /// Closes a failed run of a task and has it tried again after a pause.
    pub(crate) fn try_again(
        &mut self,
        id: &TaskId,
        mut events: Vec<TaskEvent>,
        error: &Error,
        ts_ms: Millis,
        now: Millis,
    ) {
        events.retain(|event| !matches!(event, TaskEvent::StepFinished { .. } | TaskEvent::Finished { .. }));
        self.append(id, events, ts_ms);
        self.minted += 1;
        let dice = mix(self.seed ^ self.minted);
        let Some(task) = self.tasks.active.get_mut(id) else { return };
        let Some(retry) = &task.record.input.retry else { return };
        let pause = retry.pause_ms(task.retried, dice);
        task.retried += 1;
        // It says nothing against the processes it ran in.
        task.excused += 1;
        task.actor = None;
        let (attempt, tries) = (task.record.attempt, format!("{} of {}", task.retried, retry.max));
        let mut events = task.open.closers(true);
        events.push(TaskEvent::StepReset { step: attempt });
        events.push(TaskEvent::StepFinished { step: attempt, finish: Some(RETRY.into()), usage: None });
        let message = format!("trying again in {pause} ms ({tries}): {}", error.message);
        events.push(TaskEvent::Status { state: Phase::Queued, message: Some(message) });
        let wall = self.wall(now);
        self.append(id, events, wall);
        self.tasks.later.insert((now + pause, id.clone()));
    }

    /// Tasks whose pause is over wait for an actor again.
    pub(crate) fn ripen_tasks(&mut self, now: Millis) {
        while let Some((due, id)) = self.tasks.later.first().cloned().filter(|(due, _)| *due <= now) {
            self.tasks.later.remove(&(due, id.clone()));
            self.tasks.enqueue(&id, true);
        }
    }
}

/// Spreads the bits of a number evenly (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
