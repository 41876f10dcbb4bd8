//! Takes what clients send, throws it away, and answers with the least work: beside it a caller waits for the attack, not for who is attacked.
//!
//! Prints its port and serves until it is killed. HTTP/1: `200` once the body is read, `413` to a body that is too large. A
//! connection that begins otherwise is read for a little and closed, one that says nothing more is held.

use std::{cell::RefCell, io};

use tokio::net::{TcpListener, TcpStream};

/// Largest body that is read, bytes: that of a head.
const BODY_MAX: usize = covey_domain::caps::MESSAGE_BYTES_MAX;
/// Largest head of a request that is read, bytes.
const HEAD_MAX: usize = covey_domain::caps::HEADER_BYTES_MAX;
/// Bytes that are read of a connection that speaks HTTP/2.
const FRAMES_MAX: usize = 4 << 10;
const TAKEN: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
const TOO_LARGE: &[u8] = b"HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

thread_local! {
    /// One for all connections of a thread: ten thousand of them cost no memory.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 256 << 10]);
}

#[tokio::main(worker_threads = 2)]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        tokio::spawn(async move {
            // A client may leave whenever it likes.
            let _ = serve(stream).await;
        });
    }
}

async fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Request::default();
    loop {
        stream.readable().await?;
        let said = BUFFER.with_borrow_mut(|buffer| match stream.try_read(buffer) {
            Ok(0) => Ok(Some(Said::Over)),
            Ok(count) => Ok(request.take(&buffer[..count])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        })?;
        match said {
            None => {}
            Some(Said::Whole) => write(&stream, TAKEN).await?,
            Some(Said::TooLarge) => return write(&stream, TOO_LARGE).await,
            Some(Said::Over) => return Ok(()),
        }
    }
}

async fn write(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a client has said.
#[derive(Debug, PartialEq)]
enum Said {
    /// A request is read.
    Whole,
    /// It is not worth to read it.
    TooLarge,
    /// Nothing more is read of this connection.
    Over,
}

/// The request that is being read.
#[derive(Default)]
struct Request {
    head: Vec<u8>,
    /// Bytes of the body that are to come, once the head is read.
    left: Option<usize>,
}

impl Request {
    /// Takes the next bytes. A client waits for an answer before it sends the next request.
    fn take(&mut self, bytes: &[u8]) -> Option<Said> {
        let left = match &mut self.left {
            Some(left) => {
                *left = left.saturating_sub(bytes.len());
                *left
            }
            None => {
                self.head.extend_from_slice(bytes);
                if self.head.starts_with(b"PRI ") {
                    return (self.head.len() > FRAMES_MAX).then_some(Said::Over);
                }
                let Some(end) = self.head.windows(4).position(|w| w == b"\r\n\r\n") else {
                    return (self.head.len() > HEAD_MAX).then_some(Said::Over);
                };
                let length = length_of(&self.head[..end]);
                if length > BODY_MAX {
                    return Some(Said::TooLarge);
                }
                let left = length.saturating_sub(self.head.len() - end - 4);
                self.left = Some(left);
                left
            }
        };
        if left > 0 {
            return None;
        }
        *self = Self::default();
        Some(Said::Whole)
    }
}

fn length_of(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let line = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    line.and_then(|length| length.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_when_it_is_read() {
        let mut request = Request::default();
        assert_eq!(request.take(b"POST / HTTP/1.1\r\nContent-Le"), None);
        assert_eq!(request.take(b"ngth: 5\r\n\r\nab"), None);
        assert_eq!(request.take(b"cde"), Some(Said::Whole));
        assert_eq!(request.take(b"GET / HTTP/1.1\r\n\r\n"), Some(Said::Whole));
        assert_eq!(request.take(b"POST / HTTP/1.1\r\ncontent-length: 104857600\r\n\r\n"), Some(Said::TooLarge));
    }

    #[test]
    fn frames_are_read_for_a_little() {
        let mut request = Request::default();
        assert_eq!(request.take(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), None);
        assert_eq!(request.take(&[0; FRAMES_MAX]), Some(Said::Over));
    }
}
