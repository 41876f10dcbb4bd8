//! Who did what and who was refused, as lines of JSON that are only ever added to. Each line has the hash of the one before it,
//! and one of itself: a line that was changed is found, and so are lines that were taken out between two others. Whoever can
//! write the file can make a chain anew from any line on; that this was not done, and that the end was not cut off, only a copy
//! elsewhere shows.
//!
//! Written are refusals, and what changes who may do what; not what callers do with what is theirs.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use covey_domain::{Digest, Error};
use serde::{Deserialize, Serialize};

use crate::now_ms;

/// Lines that wait to be written.
const QUEUE: usize = 1_024;
/// Refusals that are written of one second; more are counted. Whoever is refused may be anybody.
const REFUSED_PER_SECOND: u64 = 50;
/// What comes before the first line.
const BEGIN: &str = "";
/// Bytes of a line's text.
const TEXT_MAX: usize = 200;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    at_ms: u64,
    /// Whose credential.
    who: String,
    /// Method or path.
    what: String,
    allowed: bool,
    /// Lines that were not written before this one: there were too many.
    #[serde(default, skip_serializing_if = "is_zero")]
    left_out: u64,
    /// SHA-256 of the line before.
    before: String,
    /// SHA-256 of this line as it is without this. Lines of earlier versions have none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    own: String,
}

impl Line {
    /// The line as it is written.
    fn sealed(mut self) -> std::io::Result<String> {
        self.own = self.hash()?;
        serde_json::to_string(&self).map_err(std::io::Error::other)
    }

    /// What its own hash must be.
    fn hash(&self) -> std::io::Result<String> {
        let text =
            serde_json::to_string(&Self { own: String::new(), ..self.clone() }).map_err(std::io::Error::other)?;
        Ok(Digest::of(text.as_bytes()).to_string())
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Where lines are given.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    lines: mpsc::SyncSender<Line>,
    left_out: Arc<AtomicU64>,
}

impl Audit {
    /// Goes on with the file, on a thread of its own.
    pub fn start(path: &Path) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::internal(format!("failed to open `{}`: {e}", path.display()));
        let mut file = open(path).map_err(failed)?;
        let before = last(&mut file).map_err(failed)?;
        let (lines, taken) = mpsc::sync_channel(QUEUE);
        let left_out = Arc::new(AtomicU64::new(0));
        let writer = Writer { path: path.to_owned(), file, before, left_out: left_out.clone(), second: (0, 0) };
        std::thread::Builder::new().name("covey-audit".into()).spawn(move || writer.run(&taken)).map_err(failed)?;
        Ok(Self { lines, left_out })
    }

    /// Somebody did something, or was refused.
    pub fn say(&self, who: &str, what: &str, allowed: bool) {
        let cut = |text: &str| text.chars().take(TEXT_MAX).collect::<String>();
        let (who, what) = (cut(who), cut(what));
        let (before, own) = (String::new(), String::new());
        let line = Line { at_ms: now_ms(), who, what, allowed, left_out: 0, before, own };
        if self.lines.try_send(line).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

struct Writer {
    path: PathBuf,
    file: File,
    before: String,
    left_out: Arc<AtomicU64>,
    /// The second that refusals are counted of, and how many there were.
    second: (u64, u64),
}

impl Writer {
    fn run(mut self, lines: &mpsc::Receiver<Line>) {
        // The head ends when the last sender does.
        while let Ok(line) = lines.recv() {
            let more = std::iter::from_fn(|| lines.recv_timeout(Duration::from_millis(5)).ok()).take(QUEUE);
            let written = std::iter::once(line).chain(more).try_for_each(|line| self.write(line));
            if let Err(error) = written.and_then(|()| self.file.sync_data()) {
                tracing::error!(%error, "failed to write the audit log");
            }
        }
    }

    /// Whoever removed the file, or put another in its place, is not to write the rest of it: the chain goes on in what is there now, and
    /// shows that something is missing.
    fn find(&mut self) -> std::io::Result<()> {
        let own = self.file.metadata()?;
        if std::fs::metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())) {
            return Ok(());
        }
        tracing::error!(path = %self.path.display(), "the audit log was removed or replaced while the head runs");
        self.file = open(&self.path)?;
        Ok(())
    }

    fn write(&mut self, mut line: Line) -> std::io::Result<()> {
        if !line.allowed {
            let second = line.at_ms / 1_000;
            self.second = if self.second.0 == second { (second, self.second.1 + 1) } else { (second, 1) };
            if self.second.1 > REFUSED_PER_SECOND {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        }
        self.find()?;
        line.left_out = self.left_out.swap(0, Ordering::Relaxed);
        line.before = std::mem::take(&mut self.before);
        let text = line.sealed()?;
        self.before = Digest::of(text.as_bytes()).to_string();
        self.file.write_all(format!("{text}\n").as_bytes())
    }
}

/// What the next line has of the last one. A line that was not finished stays, and the next one begins behind it.
fn last(file: &mut File) -> std::io::Result<String> {
    /// More than a line has.
    const TAIL: u64 = 4_096;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    if tail.last().is_some_and(|end| *end != b'\n') {
        file.write_all(b"\n")?;
        tail.push(b'\n');
    }
    let line = tail.strip_suffix(b"\n").and_then(|tail| tail.rsplit(|b| *b == b'\n').next());
    Ok(line.map_or(BEGIN.to_owned(), |line| Digest::of(line).to_string()))
}

/// What is wrong with an audit log: the first line, from 1, that cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The line is not what was written.
    Changed(u64),
    /// Lines were taken out, or put in, before this one.
    Cut(u64),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Changed(line) => write!(f, "record {line} of the audit log is not as it was written"),
            Self::Cut(line) => write!(
                f,
                "record {line} of the audit log does not follow the one before it: some were taken out or put in"
            ),
        }
    }
}

/// How many lines a file has, or the first that is wrong.
pub fn verify(path: &Path) -> std::io::Result<Result<u64, Broken>> {
    // A line that cannot be read was left unfinished by a power cut, if the chain goes on from its bytes.
    let (mut before, mut count, mut unread, mut sealed) = (BEGIN.to_owned(), 0, None, false);
    let (mut file, mut line) = (BufReader::new(File::open(path)?), Vec::new());
    while file.read_until(b'\n', &mut line)? > 0 {
        count += 1;
        if !line.ends_with(b"\n") {
            // It is being written, or the power was cut meanwhile: the next one begins behind it.
            break;
        }
        line.pop();
        match serde_json::from_slice::<Line>(&line) {
            Ok(read) if (sealed || !read.own.is_empty()) && read.own != read.hash()? => {
                return Ok(Err(Broken::Changed(count)));
            }
            Ok(read) if read.before != before => {
                return Ok(Err(unread.map_or(Broken::Cut(count), Broken::Changed)));
            }
            Ok(read) => (unread, sealed) = (None, sealed || !read.own.is_empty()),
            Err(_) => unread = Some(count),
        }
        before = Digest::of(&line).to_string();
        line.clear();
    }
    Ok(unread.map_or(Ok(count), |line| Err(Broken::Changed(line))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(path: &Path, lines: u64) -> String {
        loop {
            let text = std::fs::read_to_string(path).unwrap();
            if text.lines().count() as u64 >= lines {
                return text;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_chain_goes_on_and_shows_what_was_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::start(&path).unwrap();
        audit.say("admin", "/covey.v1.Covey/AddKey", true);
        audit.say("nobody", "/metrics", false);
        written(&path, 2);
        drop(audit);
        let again = Audit::start(&path).unwrap();
        again.say("alice", "/v1/cluster", false);
        let text = written(&path, 3);
        assert_eq!(verify(&path).unwrap(), Ok(3));
        let now = |text: &str| {
            std::fs::write(&path, text).unwrap();
            verify(&path).unwrap()
        };
        assert_eq!(now(&text.replacen("nobody", "admin", 1)), Err(Broken::Changed(2)));
        assert_eq!(now(&text.replacen("alice", "bob", 1)), Err(Broken::Changed(3)), "the last one too");
        assert_eq!(now(&text.replacen("{\"at", "{?\"at", 1)), Err(Broken::Changed(1)));
        let lines: Vec<_> = text.lines().map(|line| format!("{line}\n")).collect();
        assert_eq!(now(&lines[1..].concat()), Err(Broken::Cut(1)));
        assert_eq!(now(&[&*lines[0], &lines[2]].concat()), Err(Broken::Cut(2)), "the middle is cut out");
        assert_eq!(now(&[&*lines[0], &lines[1], &lines[1], &lines[2]].concat()), Err(Broken::Cut(3)));
        // Whatever byte is changed, its line is named, or the next one.
        for at in (0..text.len() - 1).step_by(7) {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let line = 1 + text[..at].matches('\n').count() as u64;
            let found = verify(&path).unwrap().expect_err("one byte is another");
            assert!(
                matches!(found, Broken::Changed(n) | Broken::Cut(n) if n == line || n == line + 1),
                "{at} {found:?}"
            );
        }
    }

    #[test]
    fn a_file_that_is_removed_is_made_anew_and_shows_that_lines_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::start(&path).unwrap();
        audit.say("admin", "/covey.v1.Covey/AddKey", true);
        written(&path, 1);
        std::fs::remove_file(&path).unwrap();
        audit.say("admin", "/covey.v1.Covey/RemoveKey", true);
        while !path.exists() {
            std::thread::yield_now();
        }
        written(&path, 1);
        assert_eq!(verify(&path).unwrap(), Err(Broken::Cut(1)));
    }

    #[test]
    fn lines_of_before_and_lines_that_a_power_cut_left_are_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let first = r#"{"at_ms":1,"who":"admin","what":"/a","allowed":true,"before":""}"#;
        let torn = r#"{"at_ms":2,"who":"ad"#;
        std::fs::write(&path, format!("{first}\n{torn}")).unwrap();
        let audit = Audit::start(&path).unwrap();
        audit.say("admin", "/b", true);
        written(&path, 3);
        assert_eq!(verify(&path).unwrap(), Ok(3));
    }

    #[test]
    fn a_flood_of_refusals_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = File::create(&path).unwrap();
        let mut writer = Writer { path, file, before: String::new(), left_out: Arc::default(), second: (0, 0) };
        let line = |allowed| Line {
            at_ms: 5_000,
            who: "nobody".into(),
            what: "/".into(),
            allowed,
            left_out: 0,
            before: String::new(),
            own: String::new(),
        };
        (0..1_000).for_each(|_| writer.write(line(false)).unwrap());
        writer.write(line(true)).unwrap();
        let text = std::fs::read_to_string(dir.path().join("a")).unwrap();
        assert_eq!(text.lines().count() as u64, REFUSED_PER_SECOND + 1);
        assert!(text.lines().last().unwrap().contains(&format!("\"left_out\":{}", 1_000 - REFUSED_PER_SECOND)));
    }
}
