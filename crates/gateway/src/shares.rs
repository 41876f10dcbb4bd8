//! What one caller may have of what all share, whatever protocol it speaks.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use covey_domain::{CallerId, Error, ErrorKind, caps};
use futures::{Stream, stream::BoxStream};
use parking_lot::Mutex;

/// Streams that each caller reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares {
    streams: Arc<Mutex<HashMap<CallerId, Open>>>,
}

/// What a caller has open.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    streams: usize,
    bytes: usize,
}

/// One stream of a caller, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    of: Shares,
    caller: CallerId,
    bytes: usize,
}

impl Shares {
    /// One more stream, if this caller may read one; `bytes` are what its first event holds as long as nobody reads it.
    pub fn stream(&self, caller: &CallerId, bytes: usize) -> Result<Share, Error> {
        let mut streams = self.streams.lock();
        let open = streams.get(caller).copied().unwrap_or_default();
        if open.streams >= caps::CALLER_STREAMS_MAX {
            return Err(Error::new(ErrorKind::Overloaded, format!("{} streams of `{caller}` are open", open.streams)));
        }
        if open.bytes > 0 && open.bytes + bytes > caps::CALLER_STREAM_BYTES_MAX {
            let why = format!("streams of `{caller}` that are open show tasks of {} MiB", open.bytes >> 20);
            return Err(Error::new(ErrorKind::Overloaded, why));
        }
        streams.insert(caller.clone(), Open { streams: open.streams + 1, bytes: open.bytes + bytes });
        Ok(Share { of: self.clone(), caller: caller.clone(), bytes })
    }
}

impl Share {
    /// Counts as long as `stream` is there.
    pub fn held_by<T: 'static>(self, stream: BoxStream<'static, T>) -> BoxStream<'static, T> {
        Box::pin(Held { stream, _share: self })
    }
}

/// A stream that has a share.
struct Held<T> {
    stream: BoxStream<'static, T>,
    _share: Share,
}

impl<T> Stream for Held<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.stream.as_mut().poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.size_hint()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut streams = self.of.streams.lock();
        if let Some(open) = streams.get_mut(&self.caller) {
            open.streams -= 1;
            open.bytes -= self.bytes;
            if open.streams == 0 {
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
        let mut held: Vec<_> = (0..caps::CALLER_STREAMS_MAX).map(|_| shares.stream(&loud, 0).unwrap()).collect();
        assert_eq!(shares.stream(&loud, 0).unwrap_err().kind, ErrorKind::Overloaded);
        let other = shares.stream(&quiet, 0).unwrap().held_by(Box::pin(futures::stream::iter([1])));
        held.pop();
        held.push(shares.stream(&loud, 0).unwrap());
        drop((held, other));
        assert!(shares.streams.lock().is_empty());
    }

    #[test]
    fn streams_of_large_tasks_are_fewer() {
        let (shares, caller) = (Shares::default(), CallerId::from("one"));
        let large = caps::CALLER_STREAM_BYTES_MAX + 1;
        let one = shares.stream(&caller, large).unwrap();
        assert_eq!(shares.stream(&caller, 1).unwrap_err().kind, ErrorKind::Overloaded);
        drop(one);
        let half: Vec<_> = (0..2).map(|_| shares.stream(&caller, large / 2).unwrap()).collect();
        assert_eq!(shares.stream(&caller, large / 2).unwrap_err().kind, ErrorKind::Overloaded);
        drop(half);
        assert!(shares.streams.lock().is_empty());
    }
}
