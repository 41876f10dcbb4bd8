//! The kameo actor around a behavior, and one turn of it.

use std::sync::Arc;

use covey_domain::{Error, ErrorKind};
use kameo::{
    Actor,
    actor::{ActorRef, WeakActorRef},
    error::{ActorStopReason, Infallible},
    message::{Context, Message},
};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{Behavior, turn::Turn};

/// The kameo actor: a mailbox in front of a behavior.
pub(super) struct LiveActor {
    pub behavior: Arc<dyn Behavior>,
    pub turns: Arc<Semaphore>,
    pub concurrency: u32,
    pub running: JoinSet<()>,
}

impl Actor for LiveActor {
    type Args = Self;
    type Error = Infallible;

    async fn on_start(args: Self::Args, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        Ok(args)
    }

    /// Turns that still run are waited for, unless the actor was killed: then they end with it.
    async fn on_stop(&mut self, _: WeakActorRef<Self>, reason: ActorStopReason) -> Result<(), Self::Error> {
        if !matches!(reason, ActorStopReason::Killed) {
            while self.running.join_next().await.is_some() {}
        }
        Ok(())
    }
}

impl Message<Turn> for LiveActor {
    type Reply = ();

    async fn handle(&mut self, turn: Turn, _: &mut Context<Self, Self::Reply>) {
        // Shared with an earlier mailbox of the same actor, so that turns never overlap beyond its concurrency.
        let Ok(permit) = self.turns.clone().acquire_owned().await else { return };
        if let Some(answer) = self.behavior.at_once(&turn.invocation) {
            drop(turn.over);
            return turn.sink.end(answer);
        }
        if self.concurrency <= 1 {
            run(&*self.behavior, turn).await;
            return;
        }
        let behavior = self.behavior.clone();
        while self.running.try_join_next().is_some() {}
        self.running.spawn(async move {
            run(&*behavior, turn).await;
            drop(permit);
        });
    }
}

/// Runs a turn to its end, or until it is cancelled or late.
pub(super) async fn run(behavior: &dyn Behavior, turn: Turn) {
    let Turn { invocation, sink, control, deadline, run_timeout, retry_on: _, alone: _, over } = turn;
    let until = |at: Option<tokio::time::Instant>| async move {
        match at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    let late = |text: &str| Err(Error::new(ErrorKind::DeadlineExceeded, text).executed(None));
    let result = tokio::select! {
        biased;
        () = control.token.cancelled() => Err(Error::new(ErrorKind::Cancelled, "cancelled").executed(None)),
        () = until(deadline) => late("the time for this call ran out"),
        () = until(run_timeout.map(|limit| tokio::time::Instant::now() + limit)) => {
            late("its turn took longer than its run timeout")
        }
        result = behavior.turn(invocation, &sink) => result,
    };
    // The turn is over before its answer is seen, so that a caller who has it finds the actor free.
    drop(over);
    sink.end(result);
}
