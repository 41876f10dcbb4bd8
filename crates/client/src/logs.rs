//! What actors print, from the worker they are on.

use bytes::Bytes;
use covey_domain::{Error, status::ActorFilter};
use covey_proto::{
    from_status,
    v1::{self, LogsRequest},
};
use futures::{Stream, StreamExt as _, TryStreamExt as _};

use crate::{Client, objects::Reached};

impl Client {
    /// What the process of an actor (by id or name) printed, and goes on to print while `follow`. `tail_bytes` = 0 takes
    /// all that is kept. Actors that share a process share its log.
    pub async fn logs(
        &self,
        actor: &str,
        follow: bool,
        tail_bytes: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + use<>, Error> {
        let (mut worker, request) = self.at_worker(actor, follow, tail_bytes).await?;
        let chunks = worker.read_logs(request).await.map_err(|s| from_status(&s))?.into_inner();
        Ok(chunks.map(|chunk| chunk.map(|c| c.text).map_err(|s| from_status(&s))))
    }

    /// The Python stacks of the process of an actor, by id or name.
    pub async fn stack(&self, actor: &str) -> Result<Bytes, Error> {
        let (mut worker, request) = self.at_worker(actor, false, 0).await?;
        Ok(worker.get_stack(request).await.map_err(|s| from_status(&s))?.into_inner().text)
    }

    async fn at_worker(&self, actor: &str, follow: bool, tail_bytes: u64) -> Result<(Reached, LogsRequest), Error> {
        let filter = ActorFilter { name: actor.to_owned(), ..ActorFilter::default() };
        let named: Vec<_> = self.actors(filter).try_collect().await?;
        let found = named.into_iter().find(|a| a.state != "dead");
        let found =
            found.ok_or_else(|| Error::not_found("actor", actor).hint("`covey status` lists those that live"))?;
        let node = found.node.as_ref().ok_or_else(|| {
            Error::unavailable(format!("actor `{actor}` has no place: {}", found.why.clone().unwrap_or_default()))
        })?;
        let stores = self.verb::<v1::ListStoresReply>("ListStores", &v1::Empty {}).await?.stores;
        let store = stores.into_iter().find(|s| s.node == node.as_str());
        let store = store.ok_or_else(|| Error::unavailable(format!("worker `{node}` has no link")))?;
        let request = LogsRequest { actor: found.id.to_string(), follow, tail_bytes };
        Ok((self.reach(&store).await?, request))
    }
}
