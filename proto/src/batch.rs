//! How much goes into one message: frames are batched, but a batch of big ones is cut before it passes the limit of the
//! other end.

use covey_domain::{Error, ErrorKind, caps};
use prost::Message;

use crate::v1::Payload;

/// `frames` in order, cut into batches of at most [`caps::BATCH_BYTES_MAX`]; a larger frame goes alone.
pub fn split<T: Message>(frames: Vec<T>) -> Vec<Vec<T>> {
    if frames.iter().map(Message::encoded_len).sum::<usize>() <= caps::BATCH_BYTES_MAX {
        return vec![frames];
    }
    let (mut batches, mut bytes) = (vec![Vec::new()], 0);
    for frame in frames {
        let size = frame.encoded_len();
        if bytes > 0 && bytes + size > caps::BATCH_BYTES_MAX {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(last) = batches.last_mut() {
            last.push(frame);
        }
    }
    batches
}

/// Bytes of a payload, its buffers included.
pub fn size_of(payload: &Payload) -> usize {
    payload.body.len() + payload.buffers.iter().map(|b| b.len()).sum::<usize>()
}

/// Refuses a payload over [`caps::MESSAGE_BYTES_MAX`]; `what` names it.
pub fn check_size(what: &str, payload: &Payload) -> Result<(), Error> {
    check_bytes(what, size_of(payload))
}

/// The same of what a task is asked, told and answers. A task keeps it, where a reference would outlive what it names.
pub fn check_task_size(what: &str, payload: &Payload) -> Result<(), Error> {
    let hint =
        "a task keeps it: give what is large as a file, in Python `covey.File(data)`, or call the method instead";
    check_size(what, payload).map_err(|error| error.hint(hint))
}

/// Refuses so many bytes where that is too much for one message.
pub fn check_bytes(what: &str, size: usize) -> Result<(), Error> {
    if size > caps::MESSAGE_BYTES_MAX {
        let (has, most) = (size >> 20, caps::MESSAGE_BYTES_MAX >> 20);
        return Err(Error::new(ErrorKind::TooLarge, format!("{what} has {has} MiB, the limit is {most} MiB"))
            .hint("send it in pieces, for example as a stream; in Python, `covey.put(value)` keeps it, and its reference travels"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_order_and_bounds() {
        let payload = |mib: usize| Payload { body: vec![mib as u8; mib << 20].into(), ..Payload::default() };
        let batches = split(Vec::from([1, 9, 9, 30, 2].map(payload)));
        let sizes: Vec<Vec<u8>> = batches.iter().map(|b| b.iter().map(|p| p.body[0]).collect()).collect();
        assert_eq!(sizes, [vec![1, 9], vec![9], vec![30], vec![2]]);
        assert!(check_size("x", &payload(32)).is_ok());
        assert_eq!(check_size("x", &payload(33)).unwrap_err().kind, ErrorKind::TooLarge);
    }
}
