//! What actors print, from the workers they are on.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use covey_domain::{Error, ErrorKind, caps, status::ActorFilter};
use covey_proto::{
    from_status,
    v1::{self, LogLine, LogsRequest, Store},
};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{Client, objects::Reached};

/// Pause before it is looked for workers again: at first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Pause before a worker that could not be listened to is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What actors printed at about the same time on one worker.
#[derive(Clone, Debug, Default)]
pub struct Printed {
    /// Name of the worker.
    pub node: String,
    /// In order.
    pub lines: Vec<LogLine>,
    /// Lines that are missing before these: there were too many, or nobody took them.
    pub left_out: u64,
}

impl Client {
    /// What an actor (by id or name) printed, and goes on to print while `follow`. `tail_bytes` = 0 takes all that is kept. Lines
    /// that do not say whose they are (of threads, other programs, code that is not Python) are shown for each actor of the
    /// process. An actor may be over: its log is kept by its worker.
    pub async fn logs(
        &self,
        actor: &str,
        follow: bool,
        tail_bytes: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + use<>, Error> {
        let (mut worker, request) = match self.at_worker(actor, follow, tail_bytes).await? {
            Found::Here(worker, request) => (worker, request),
            Found::Nowhere(id, why) => self.past_at(&id, tail_bytes, why).await?,
        };
        let chunks = worker.read_logs(request).await.map_err(|s| from_status(&s))?.into_inner();
        Ok(chunks.map(|chunk| chunk.map(|c| c.text).map_err(|s| from_status(&s))))
    }

    /// The Python stacks of the process of an actor, by id or name.
    pub async fn stack(&self, actor: &str) -> Result<Bytes, Error> {
        let (mut worker, request) = match self.at_worker(actor, false, 0).await? {
            Found::Here(worker, request) => (worker, request),
            Found::Nowhere(_, why) => return Err(why),
        };
        Ok(worker.get_stack(request).await.map_err(|s| from_status(&s))?.into_inner().text)
    }

    /// What actors of `session` print, and actors that live for no driver: from now on, of the first also what they printed
    /// before. It is taken from each worker as it comes; whoever does not read misses some, and is told how much. Nothing is
    /// asked for once the receiver is gone. To be called inside a runtime.
    pub fn printed(&self, session: &str) -> mpsc::Receiver<Printed> {
        let (tx, rx) = mpsc::channel(caps::PRINTED_QUEUE_DEPTH_MAX);
        tokio::spawn(listen_to_all(self.impatient(), session.to_owned(), tx));
        rx
    }

    async fn at_worker(&self, actor: &str, follow: bool, tail_bytes: u64) -> Result<Found, Error> {
        let filter = ActorFilter { name: actor.to_owned(), ..ActorFilter::default() };
        let named: Vec<_> = self.actors(filter).try_collect().await?;
        // Ids begin with the time: the last one is the newest.
        let found = named.iter().find(|a| a.state != "dead").or(named.last());
        let missing = || Error::not_found("actor", actor).hint("`covey actors` lists all of them");
        let Some(found) = found else { return Ok(Found::Nowhere(actor.to_owned(), missing())) };
        let Some(node) = found.node.as_ref().filter(|_| found.state != "dead") else {
            let why = found.why.clone().unwrap_or_default();
            let error = match found.state.as_str() {
                "dead" => Error::not_found("actor", actor).hint(format!("it is over: {why}")),
                _ => Error::unavailable(format!("actor `{actor}` has no place: {why}")),
            };
            return Ok(Found::Nowhere(found.id.to_string(), error));
        };
        let store = self.stores().await?.into_iter().find(|s| s.node == node.as_str());
        let store = store.ok_or_else(|| Error::unavailable(format!("worker `{node}` has no link")))?;
        let request = LogsRequest { actor: found.id.to_string(), follow, tail_bytes, ..LogsRequest::default() };
        Ok(Found::Here(self.reach(&store).await?, request))
    }

    /// The worker that still has the log of an actor which is nowhere now.
    async fn past_at(&self, id: &str, tail_bytes: u64, why: Error) -> Result<(Reached, LogsRequest), Error> {
        let request = LogsRequest { actor: id.to_owned(), tail_bytes, ..LogsRequest::default() };
        let mut unreached = None;
        for store in self.stores().await? {
            let asked = async {
                let mut worker = self.reach(&store).await?;
                worker.read_logs(request.clone()).await.map_err(|s| from_status(&s))?;
                Ok::<_, Error>(worker)
            };
            match asked.await {
                Ok(worker) => return Ok((worker, request)),
                Err(error) if error.kind == ErrorKind::Unavailable => unreached = Some(error),
                Err(_) => {}
            }
        }
        Err(unreached.unwrap_or(why))
    }

    async fn stores(&self) -> Result<Vec<Store>, Error> {
        Ok(self.verb::<v1::ListStoresReply>("ListStores", &v1::Empty {}).await?.stores)
    }
}

/// Where the log of an actor is.
enum Found {
    Here(Reached, LogsRequest),
    /// The actor of this id is on no worker now.
    Nowhere(String, Error),
}

/// Listens to each worker that there is, and to those that come.
async fn listen_to_all(client: Client, session: String, tx: mpsc::Sender<Printed>) {
    let (mut listening, mut met) = (HashSet::new(), HashSet::new());
    let mut over = JoinSet::new();
    let mut pause = LOOK.0;
    loop {
        for store in client.stores().await.unwrap_or_default() {
            if listening.len() < caps::PRINTED_WORKERS_MAX && listening.insert(store.node.clone()) {
                let request = LogsRequest {
                    session: session.clone(),
                    follow: true,
                    fresh: !met.contains(&store.node),
                    ..LogsRequest::default()
                };
                over.spawn(listen(client.clone(), store, request, tx.clone()));
                pause = LOOK.0;
            }
        }
        tokio::select! {
            () = tx.closed() => return,
            Some(Ok((node, heard))) = over.join_next(), if !over.is_empty() => {
                listening.remove(&node);
                if heard {
                    met.insert(node);
                }
            }
            () = tokio::time::sleep(pause) => pause = (pause * 3 / 2).min(LOOK.1),
        }
    }
}

/// Listens to one worker until that is over; gives its node, and whether it took the request.
async fn listen(client: Client, store: Store, request: LogsRequest, tx: mpsc::Sender<Printed>) -> (String, bool) {
    let opened = async {
        let mut worker = client.reach(&store).await?;
        Ok::<_, Error>(worker.read_logs(request).await.map_err(|s| from_status(&s))?.into_inner())
    };
    let heard = match opened.await {
        Ok(mut chunks) => {
            let mut left_out = 0;
            while let Ok(Some(chunk)) = chunks.message().await {
                let (count, before) = (chunk.lines.len() as u64, left_out + chunk.left_out);
                let printed = Printed { node: chunk.node, lines: chunk.lines, left_out: before };
                // What nobody takes is not waited for: this connection has other work.
                left_out = tx.try_send(printed).map_or(before + count, |()| 0);
            }
            true
        }
        // It cannot be reached from here, or is just leaving.
        Err(_) => false,
    };
    tokio::time::sleep(AGAIN).await;
    (store.node, heard)
}
