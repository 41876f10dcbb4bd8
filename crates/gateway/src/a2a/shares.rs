//! What one caller may have of what all share.

use std::{collections::HashMap, sync::Arc};

use covey_a2a::{Error, Kind};
use covey_domain::{CallerId, caps};
use futures::{Stream, StreamExt as _, stream::BoxStream};
use parking_lot::Mutex;

/// Streams that each caller reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    streams: Arc<Mutex<HashMap<CallerId, usize>>>,
}

/// One stream of a caller, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Shares,
    caller: CallerId,
}

impl Shares {
    /// One more stream, if this caller may read one.
    pub fn stream(&self, caller: &CallerId) -> Result<Share, Error> {
        let mut streams = self.streams.lock();
        let open = streams.entry(caller.clone()).or_default();
        if *open >= caps::CALLER_STREAMS_MAX {
            return Err(Error::new(Kind::Exhausted, format!("{open} streams of `{caller}` are open")));
        }
        *open += 1;
        Ok(Share { of: self.clone(), caller: caller.clone() })
    }
}

impl Share {
    /// Counts as long as `stream` is there.
    pub fn held_by<T: 'static>(self, stream: impl Stream<Item = T> + Send + 'static) -> BoxStream<'static, T> {
        stream
            .map(move |item| {
                let _held = &self;
                item
            })
            .boxed()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut streams = self.of.streams.lock();
        if let Some(open) = streams.get_mut(&self.caller) {
            *open -= 1;
            if *open == 0 {
                streams.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_reads_so_many_streams_and_others_as_many() {
        let (shares, loud, quiet) = (Shares::default(), CallerId::from("loud"), CallerId::from("quiet"));
        let mut held: Vec<_> = (0..caps::CALLER_STREAMS_MAX).map(|_| shares.stream(&loud).unwrap()).collect();
        assert_eq!(shares.stream(&loud).unwrap_err().kind, Kind::Exhausted);
        let other = shares.stream(&quiet).unwrap().held_by(futures::stream::iter([1]));
        held.pop();
        held.push(shares.stream(&loud).unwrap());
        drop((held, other));
        assert!(shares.streams.lock().is_empty());
    }
}
