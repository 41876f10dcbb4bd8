//! Entries of one link that the owner was given and has not answered for yet.
//!
//! The link is read on meanwhile: behind entries come beats, by which the worker keeps its lease, and frames of calls. While the
//! head's disk is full the owner holds entries for as long as that takes.

use std::{collections::VecDeque, time::Duration};

use covey_cluster_core::head::Entry;
use covey_domain::{Error, NodeId, caps};
use tokio::sync::oneshot;

use crate::owner::{Handle, Input};

/// How long a link waits for the owner, once it has given it as much as it may, before it gives entries up.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 1_000 });

/// What a link has handed over, oldest first.
#[derive(Default)]
pub(crate) struct Handing {
    pending: VecDeque<(usize, oneshot::Receiver<Result<(), Error>>)>,
    bytes: usize,
    /// Entries were not handed over. The worker has them until they are durable, and sends them again over its next link.
    left_out: bool,
}

impl Handing {
    /// The owner's next answer; without anything to be answered it does not come. May be dropped at any time.
    ///
    /// # Errors
    /// The link is to end: the owner has refused entries, or those that were left out can be sent again now.
    pub async fn answered(&mut self) -> Result<(), Error> {
        let Some((bytes, reply)) = self.pending.front_mut() else { return std::future::pending().await };
        let answer = reply.await.unwrap_or_else(|_| Err(Error::unavailable("the head is stopping")));
        self.bytes -= *bytes;
        self.pending.pop_front();
        if self.left_out && self.pending.is_empty() {
            return answer.and(Err(Error::unavailable("there is room again for what was left out")));
        }
        answer
    }

    /// Gives entries of so many bytes to the owner, behind those before them.
    ///
    /// # Errors
    /// As [`Self::answered`].
    pub async fn give(
        &mut self,
        owner: &Handle,
        node: &NodeId,
        conn: u64,
        entries: Vec<Entry>,
        bytes: usize,
    ) -> Result<(), Error> {
        while !self.left_out && self.is_full(bytes) {
            match tokio::time::timeout(PATIENCE, self.answered()).await {
                Ok(answer) => answer?,
                Err(_) => {
                    tracing::warn!(%node, conn, bytes = self.bytes, "a worker has more to say than the head can hold for now");
                    self.left_out = true;
                }
            }
        }
        // What comes behind a gap would be refused.
        if self.left_out {
            return Ok(());
        }
        let (tx, rx) = oneshot::channel();
        self.bytes += bytes;
        self.pending.push_back((bytes, rx));
        owner.tell(Input::Entries(node.clone(), conn, entries, tx)).await;
        Ok(())
    }

    fn is_full(&self, more: usize) -> bool {
        let most = self.pending.len() >= caps::LINK_HANDED_MAX || self.bytes + more > caps::LINK_HANDED_BYTES_MAX;
        most && !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: usize) -> (Vec<Entry>, usize) {
        (Vec::new(), bytes)
    }

    #[tokio::test]
    async fn a_link_goes_on_while_the_owner_holds_what_it_was_given() {
        let (inputs, mut rx) = tokio::sync::mpsc::channel(caps::LINK_HANDED_MAX * 2);
        let (owner, node) = (Handle::of(inputs), NodeId::from("n"));
        let mut handing = Handing::default();
        // As much as may be held, then what is left out, for as long as nothing is answered.
        let many = 5;
        for _ in 0..many {
            let (entries, bytes) = of(caps::LINK_HANDED_BYTES_MAX / 3);
            handing.give(&owner, &node, 1, entries, bytes).await.unwrap();
        }
        let mut held = Vec::new();
        while let Ok(Input::Entries(_, _, _, reply)) = rx.try_recv() {
            held.push(reply);
        }
        assert_eq!(held.len(), 3, "the rest stays with its worker");
        assert!(handing.bytes <= caps::LINK_HANDED_BYTES_MAX);
        // Nothing is answered yet, so nothing is asked for.
        assert!(tokio::time::timeout(PATIENCE, handing.answered()).await.is_err());
        for (n, reply) in held.into_iter().enumerate() {
            reply.send(Ok(())).unwrap();
            assert_eq!(handing.answered().await.is_err(), n == 2, "it is sent again once all before it was taken");
        }
    }

    #[tokio::test]
    async fn what_the_owner_refuses_ends_the_link() {
        let (inputs, mut rx) = tokio::sync::mpsc::channel(8);
        let (owner, node) = (Handle::of(inputs), NodeId::from("n"));
        let mut handing = Handing::default();
        let (entries, bytes) = of(1);
        handing.give(&owner, &node, 1, entries, bytes).await.unwrap();
        let Some(Input::Entries(_, _, _, reply)) = rx.recv().await else { panic!("entries") };
        reply.send(Err(Error::unavailable("this link is over"))).unwrap();
        assert!(handing.answered().await.is_err());
        assert_eq!(handing.bytes, 0);
    }
}
