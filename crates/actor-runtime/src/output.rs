//! What Python processes print: a file for each, cut by size and age, read by `covey logs` and by drivers ([`crate::printed`]).
//!
//! A process marks the lines of its actors (`covey/_marks.py`): the marks stay in the file, and are taken away for whoever
//! reads it as text. What a mark says is believed only of actors that are, or were lately, in that process.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use covey_domain::ActorId;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    sync::watch,
};

use crate::recent::Recent;

/// A file this large is put aside; one older one is kept.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Files of processes that ended this long ago are removed.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Actors of a process that are known by their marks; the oldest are forgotten.
const PEOPLE_MAX: usize = 16_384;
/// Stands at both ends of a mark.
const MARK: char = '\u{1e}';
/// Stands between the parts of a mark.
const PART: char = '\u{1f}';

/// Whose a line is, as its process says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark<'a> {
    /// It was printed to standard error.
    pub stderr: bool,
    pub actor: &'a str,
    /// What it is called where it is shown: its agent, a virtual actor's id, the name of a function.
    pub label: &'a str,
}

/// A line of a log: whose it is, where that is said, and its text.
pub(crate) fn split(line: &str) -> (Option<Mark<'_>>, &str) {
    let marked = || {
        let (mark, text) = line.strip_prefix(MARK)?.split_once(MARK)?;
        let (actor, label) = mark.split_once(PART)?;
        let (stderr, actor) = match actor.split_at_checked(1)? {
            ("1", actor) => (false, actor),
            ("2", actor) => (true, actor),
            _ => return None,
        };
        Some((Mark { stderr, actor, label }, text))
    };
    marked().map_or((None, line), |(mark, text)| (Some(mark), text))
}

/// Whole lines of a log, without their marks.
pub(crate) fn plain(bytes: &[u8]) -> Vec<u8> {
    without_marks(bytes, |_| true)
}

/// The same without lines that are another actor's than this one.
pub(crate) fn plain_of(bytes: &[u8], actor: &str) -> Vec<u8> {
    // Behind the stream's digit.
    let own = |mark: &[u8]| mark.get(1..).and_then(|rest| rest.strip_prefix(actor.as_bytes())).is_some_and(is_part);
    without_marks(bytes, own)
}

fn is_part(rest: &[u8]) -> bool {
    rest.first() == Some(&(PART as u8))
}

fn without_marks(bytes: &[u8], wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let marked = line.strip_prefix(&[MARK as u8]).and_then(|rest| {
            let at = rest.iter().position(|byte| *byte == MARK as u8)?;
            Some((&rest[..at], &rest[at + 1..]))
        });
        match marked {
            Some((mark, said)) if wanted(mark) => text.extend_from_slice(said),
            Some(_) => {}
            None => text.extend_from_slice(line),
        }
    }
    text
}

/// A place in what a process has printed, in the order of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Which file: times that one was put aside.
    pub cut: u64,
    /// Bytes of that file.
    pub offset: u64,
    /// Lines of all files.
    pub line: u64,
}

/// An actor that prints here.
#[derive(Debug)]
pub(crate) struct Person {
    pub agent: String,
    /// Whom it lives for, as the head says it.
    pub owner: String,
    /// It was not here before.
    pub since: Place,
    /// It has left.
    pub gone: bool,
}

/// Actors of a process, also those that have left lately: what they printed may be read after that.
#[derive(Debug)]
pub(crate) struct People(Recent<ActorId, Person>);

impl People {
    pub fn get(&self, actor: &str) -> Option<&Person> {
        self.0.get(actor)
    }

    /// Those that are in the process.
    pub fn present(&self) -> impl Iterator<Item = (&ActorId, &Person)> {
        self.0.iter().filter(|(_, person)| !person.gone)
    }

    /// All that are known.
    pub fn all(&self) -> impl Iterator<Item = &Person> {
        self.0.iter().map(|(_, person)| person)
    }
}

/// The output of one process.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    pub pid: u32,
    file: Mutex<Written>,
    people: Mutex<People>,
    /// Told of each line.
    printed: watch::Sender<()>,
}

#[derive(Debug)]
struct Written {
    file: File,
    end: Place,
    /// Where the file begins.
    start: Place,
}

impl Output {
    pub fn create(path: PathBuf, pid: u32, printed: watch::Sender<()>) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = Written { file: File::create(&path)?, end: Place::default(), start: Place::default() };
        Ok(Self { path, pid, file: Mutex::new(file), people: Mutex::new(People(Recent::new(PEOPLE_MAX))), printed })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the file begins and ends.
    pub fn bounds(&self) -> (Place, Place) {
        let file = self.file.lock();
        (file.start, file.end)
    }

    /// An actor may print from now on.
    pub fn enter(&self, actor: &ActorId, agent: &str, owner: &str) {
        let since = self.bounds().1;
        let person = Person { agent: agent.to_owned(), owner: owner.to_owned(), since, gone: false };
        self.people.lock().0.insert(actor.clone(), person);
    }

    /// An actor has left.
    pub fn leave(&self, actor: &ActorId) {
        if let Some(person) = self.people.lock().0.get_mut(actor) {
            person.gone = true;
        }
    }

    /// Whose lines these are.
    pub fn people<T>(&self, look: impl FnOnce(&People) -> T) -> T {
        look(&self.people.lock())
    }

    /// Keeps a line.
    pub fn line(&self, line: &str) -> io::Result<()> {
        let mut written = self.file.lock();
        if written.end.offset > FILE_BYTES_MAX {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            written.file = File::create(&self.path)?;
            written.end.cut += 1;
            written.end.offset = 0;
            written.start = written.end;
        }
        // In one piece: who reads meanwhile sees the whole line or nothing of it.
        let mut whole = String::with_capacity(line.len() + 1);
        whole.push_str(line);
        whole.push('\n');
        written.file.write_all(whole.as_bytes())?;
        written.end.offset += whole.len() as u64;
        written.end.line += 1;
        Ok(())
    }

    /// Copies what a process prints to the file, and to the worker's own output, until it ends.
    pub async fn copy(&self, from: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(from).split(b'\n');
        while let Ok(Some(bytes)) = lines.next_segment().await {
            let line = String::from_utf8_lossy(&bytes);
            // A worker whose own output is closed still keeps the line.
            let _ = writeln!(io::stderr(), "{}", split(&line).1);
            if let Err(error) = self.line(&line) {
                tracing::warn!(%error, path = %self.path.display(), "a line of output was not kept");
            }
            self.printed.send_modify(|()| {});
        }
    }
}

/// What a file has from `offset` on, at most `most` bytes; from the start when it was cut meanwhile. Gives the next offset.
pub(crate) fn read(path: &Path, offset: u64, most: usize) -> io::Result<(Vec<u8>, u64)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = if offset > length { 0 } else { offset };
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    let next = from + bytes.len() as u64;
    Ok((bytes, next))
}

/// The same up to the end of a line, unless one line alone has more.
pub(crate) fn read_lines(path: &Path, offset: u64, most: usize) -> io::Result<(Vec<u8>, u64)> {
    let (mut bytes, next) = read(path, offset, most)?;
    let from = next - bytes.len() as u64;
    match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => bytes.truncate(at + 1),
        None if bytes.len() < most => bytes.clear(),
        None => {}
    }
    let next = from + bytes.len() as u64;
    Ok((bytes, next))
}

/// Where the first line begins that has nothing before `offset`.
pub(crate) fn line_start(path: &Path, offset: u64, most: usize) -> io::Result<u64> {
    let Some(before) = offset.checked_sub(1) else { return Ok(0) };
    let (bytes, _) = read(path, before, most)?;
    Ok(bytes.iter().position(|byte| *byte == b'\n').map_or(offset, |at| before + at as u64 + 1))
}

/// Removes files that nobody will want any more.
pub(crate) fn clean(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age =
            entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| SystemTime::now().duration_since(t).ok());
        if age.is_some_and(|age| age > AGE_MAX) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_kept_and_the_file_is_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let output = Output::create(folder.path().join("p.log"), 1, watch::Sender::default()).expect("a file");
        output.copy(&b"one\ntwo \xff\nthree"[..]).await;
        let (bytes, next) = read(output.path(), 0, 1 << 20).expect("readable");
        assert_eq!(String::from_utf8_lossy(&bytes), "one\ntwo \u{fffd}\nthree\n");
        assert_eq!(read(output.path(), next, 1 << 20).expect("readable").0, b"");
        assert_eq!(output.bounds().1, Place { cut: 0, offset: next, line: 3 });
        let long = "x".repeat(1 << 20);
        for _ in 0..10 {
            output.line(&long).expect("room");
        }
        assert!(fs::metadata(output.path()).expect("there").len() < FILE_BYTES_MAX);
        assert!(folder.path().join("p.log.1").exists());
        assert!(
            !read(output.path(), u64::MAX, 10).expect("readable").0.is_empty(),
            "a cut file is read from its start"
        );
        let (start, end) = output.bounds();
        assert_eq!((start.cut, start.offset, end.line), (1, 0, 13));
    }

    #[tokio::test]
    async fn lines_are_read_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let output = Output::create(folder.path().join("p.log"), 1, watch::Sender::default()).expect("a file");
        output.copy(&b"one\ntwo\nthree\n"[..]).await;
        let lines = |offset, most| read_lines(output.path(), offset, most).expect("readable");
        assert_eq!(lines(0, 6), (b"one\n".to_vec(), 4));
        assert_eq!(lines(4, 100), (b"two\nthree\n".to_vec(), 14));
        assert_eq!(lines(8, 3), (b"thr".to_vec(), 11), "a line that is longer than that comes in pieces");
        for (offset, start) in [(0, 0), (1, 4), (4, 4), (5, 8), (14, 14)] {
            assert_eq!(line_start(output.path(), offset, 100).expect("readable"), start);
        }
    }

    #[test]
    fn marks_are_told_from_text() {
        let mark = Mark { stderr: true, actor: "actor-1", label: "Counter" };
        assert_eq!(split("\u{1e}2actor-1\u{1f}Counter\u{1e}one \u{1e}two"), (Some(mark), "one \u{1e}two"));
        for text in ["", "plain", "\u{1e}", "\u{1e}half", "\u{1e}3a\u{1f}b\u{1e}x", "\u{1e}1ab\u{1e}x", "\u{1e}\u{1e}"]
        {
            assert_eq!(split(text), (None, text));
        }
        let log = b"\x1e1a\x1fb\x1eone\ntwo\n\x1e2a\x1fb\x1e\n\x1e1ab\x1fb\x1ethree\n";
        assert_eq!(plain(log), b"one\ntwo\n\nthree\n");
        assert_eq!(plain_of(log, "a"), b"one\ntwo\n\n");
        assert_eq!(plain_of(log, "ab"), b"two\nthree\n");
    }

    #[test]
    fn actors_that_left_are_known_for_a_while() {
        let folder = tempfile::tempdir().expect("a folder");
        let output = Output::create(folder.path().join("p.log"), 1, watch::Sender::default()).expect("a file");
        output.enter(&"a".into(), "A", "session:1");
        output.line("x").expect("room");
        output.enter(&"b".into(), "B", "virtual");
        output.leave(&"a".into());
        assert!(output.people(|people| people.get("a").is_some_and(|a| a.gone && a.since == Place::default())));
        assert_eq!(
            output.people(|people| people.present().map(|(id, b)| (id.to_string(), b.since.line)).collect::<Vec<_>>()),
            [("b".to_owned(), 1)]
        );
        for n in 0..PEOPLE_MAX {
            output.enter(&format!("c{n}").as_str().into(), "C", "virtual");
        }
        assert!(output.people(|people| people.get("a").is_none() && people.all().count() == PEOPLE_MAX));
    }
}
