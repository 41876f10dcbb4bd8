//! What the commands print. Standard output may be a pipe whose reader has gone (`covey status | head -0`): a command is over
//! then, and a server goes on without. `print!` and `println!` would panic, so nothing here uses them.

use std::{
    borrow::Cow,
    fmt::Arguments,
    io::{ErrorKind, IsTerminal as _, Write as _},
    sync::atomic::{AtomicBool, Ordering},
};

static SERVES: AtomicBool = AtomicBool::new(false);

/// This process is a server: what it prints is worth nothing to its clients.
pub(crate) fn serves() {
    SERVES.store(true, Ordering::Relaxed);
}

/// Writes to standard output, at once where it is a whole line.
pub(crate) fn write(text: Arguments<'_>) {
    done(std::io::stdout().lock().write_fmt(text));
}

/// Writes text of an agent's answer, which leaves at once: as it is to a file or a program, and so that it does nothing to a terminal.
pub(crate) fn answer(text: &str) {
    let mut out = std::io::stdout().lock();
    let shown = if out.is_terminal() { Cow::Owned(plain(text)) } else { Cow::Borrowed(text) };
    done(out.write_all(shown.as_bytes()).and_then(|()| out.flush()));
}

/// Writes bytes to standard output; they leave at once.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    done(out.write_all(bytes).and_then(|()| out.flush()));
}

/// What was printed without a newline leaves now.
pub(crate) fn flush() {
    done(std::io::stdout().lock().flush());
}

/// Writes what people read to standard output: names and reasons in it come from elsewhere, and do nothing to a terminal.
pub(crate) fn write_plain(text: Arguments<'_>) {
    write(format_args!("{}", plain(&text.to_string())));
}

/// Writes to standard error, as [`write_plain`]; where nobody reads that either, there is nobody to tell.
pub(crate) fn tell(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_all(plain(&text.to_string()).as_bytes());
}

/// The text, with escapes in the place of what would do something to a terminal.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    covey_domain::shown::write_plain(&mut plain, text);
    plain
}

#[expect(clippy::exit, reason = "the reader has gone, and with it who could want the rest")]
fn done(written: std::io::Result<()>) {
    let Err(error) = written else { return };
    if SERVES.load(Ordering::Relaxed) {
        return;
    }
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    tell(format_args!("error: failed to write to standard output: {error}\n"));
    std::process::exit(70);
}

/// Prints to standard output, as it is.
macro_rules! out {
    ($($text:tt)*) => { $crate::out::write(format_args!($($text)*)) };
}

/// Prints a line to standard output.
macro_rules! outln {
    () => { $crate::out::write(format_args!("\n")) };
    ($($text:tt)*) => { $crate::out::write_plain(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints to standard error.
macro_rules! err {
    ($($text:tt)*) => { $crate::out::tell(format_args!($($text)*)) };
}

/// Prints a line to standard error.
macro_rules! errln {
    () => { $crate::out::tell(format_args!("\n")) };
    ($($text:tt)*) => { $crate::out::tell(format_args!("{}\n", format_args!($($text)*))) };
}
