//! Code that a process has: it travels once, with the first start of an actor that needs it.

use std::collections::HashSet;

use bytes::Bytes;
use covey_proto::v1::HostStart;
use parking_lot::Mutex;

/// Digests of the code that was sent to a process.
#[derive(Default)]
pub(super) struct Code(Mutex<HashSet<String>>);

impl Code {
    /// Sends a start, with its code if that is new. No start without it overtakes the one with it.
    pub fn send(&self, mut start: HostStart, send: impl FnOnce(HostStart)) {
        let mut sent = self.0.lock();
        if !sent.insert(start.digest.clone()) {
            start.code = Bytes::new();
        }
        send(start);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    #[test]
    fn whoever_comes_first_brings_the_code() {
        const THREADS: usize = 8;
        for _ in 0..200 {
            let (code, arrived, all) = (Code::default(), Mutex::new(Vec::new()), Barrier::new(THREADS));
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        let start = HostStart { digest: "d".into(), code: Bytes::from("code"), ..HostStart::default() };
                        all.wait();
                        code.send(start, |start| {
                            thread::yield_now();
                            arrived.lock().push(!start.code.is_empty());
                        });
                    });
                }
            });
            let arrived = arrived.into_inner();
            assert!(arrived[0] && arrived[1..].iter().all(|with| !with), "{arrived:?}");
        }
    }
}
