//! What the processes of a worker print, read for one driver: the lines of its session's actors, and of actors that no driver
//! owns. The files are the buffer: nothing is kept for a driver that does not listen, and nobody who prints waits for one.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use covey_domain::caps;
use covey_proto::v1::LogLine;
use tokio::sync::watch;

use crate::{
    output::{self, Mark, Output, People, Place},
    python::{HostNumber, Hosts},
};

/// Bytes of one file that are looked at in one round.
const READ_MAX: usize = 256 << 10;
/// The files are looked at so often while there is something that was not told yet.
const LOOK: Duration = Duration::from_millis(100);
/// What is printed at about the same time goes together.
const GATHER: Duration = Duration::from_millis(5);

/// Reads for one driver.
pub struct Printed {
    hosts: Option<Arc<Hosts>>,
    /// Changes with each line.
    news: Option<watch::Receiver<()>>,
    /// As the head says whom an actor lives for.
    owner: String,
    readers: HashMap<HostNumber, Reader>,
    pace: Pace,
    /// What was printed before it began is told too, of the session's own actors.
    fresh: bool,
    begun: bool,
}

impl Printed {
    pub(crate) fn new(hosts: Option<Arc<Hosts>>, session: &str, fresh: bool) -> Self {
        let owner = format!("session:{session}");
        let news = hosts.as_ref().map(|hosts| hosts.printed.subscribe());
        Self { hosts, news, owner, readers: HashMap::new(), pace: Pace::new(Instant::now()), fresh, begun: false }
    }

    /// Lines that were printed since the last time, and how many were left out. It reads files, a bounded part of each.
    pub fn read(&mut self) -> (Vec<LogLine>, u64) {
        let now = Instant::now();
        // Before the look: what is printed meanwhile is news then.
        if let Some(news) = &mut self.news {
            news.mark_unchanged();
        }
        let mut lines = Vec::new();
        for (number, output) in self.hosts.iter().flat_map(|hosts| hosts.outputs()) {
            let (begun, fresh, owner) = (self.begun, self.fresh, &self.owner);
            let reader = self.readers.entry(number).or_insert_with(|| match begun {
                true => Reader::new(output, Place::default(), Place::default()),
                false => Reader::of_running(output, owner, fresh),
            });
            // A process that prints more than is read falls behind, and is caught up with when its file is cut.
            reader.read(&self.owner, &mut |line| {
                if self.pace.admits(now, line.text.len()) {
                    lines.push(line);
                }
            });
            self.pace.leaves_out(std::mem::take(&mut reader.missed));
        }
        self.begun = true;
        // What has ended is read to its end first.
        self.readers.retain(|_, reader| Arc::strong_count(&reader.output) > 1 || reader.is_behind());
        (lines, self.pace.left_out(now))
    }

    /// Waits until there may be more.
    pub async fn more(&mut self) {
        let untold = self.pace.left_out > 0 || self.readers.values().any(Reader::is_behind);
        let Some(news) = &mut self.news else { return std::future::pending().await };
        if untold {
            let _ = tokio::time::timeout(LOOK, news.changed()).await;
        } else {
            // It ends with the worker.
            let _ = news.changed().await;
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// How far the log of one process has been read.
struct Reader {
    output: Arc<Output>,
    at: Place,
    /// Lines of actors that nobody owns are told from here on.
    unowned_from: Place,
    /// The last piece was the beginning of a line that is longer than what is read at once.
    inside: bool,
    /// Lines that were gone before they were read.
    missed: u64,
}

impl Reader {
    fn new(output: Arc<Output>, at: Place, unowned_from: Place) -> Self {
        Self { output, at, unowned_from, inside: false, missed: 0 }
    }

    /// Of a process that was there before: from where the first actor of `owner` came, if what it printed is wanted.
    fn of_running(output: Arc<Output>, owner: &str, fresh: bool) -> Self {
        let (_, end) = output.bounds();
        let since = |people: &People| people.all().filter(|p| p.owner == owner).map(|p| p.since).min();
        let at = if fresh { output.people(since).unwrap_or(end) } else { end };
        Self::new(output, at, end)
    }

    fn is_behind(&self) -> bool {
        self.at < self.output.bounds().1
    }

    fn read(&mut self, owner: &str, take: &mut impl FnMut(LogLine)) {
        let (start, end) = self.output.bounds();
        if self.at.cut < start.cut {
            self.missed += start.line.saturating_sub(self.at.line);
            (self.at, self.inside) = (start, false);
        }
        if self.at >= end {
            return;
        }
        let Ok((bytes, next)) = output::read_lines(self.output.path(), self.at.offset, READ_MAX) else { return };
        if self.output.bounds().0.cut != self.at.cut {
            // It was cut at this moment; the next round sees that.
            return;
        }
        let text = String::from_utf8_lossy(&bytes);
        let output = self.output.clone();
        output.people(|people| {
            for line in text.split_inclusive('\n') {
                let whole = line.ends_with('\n');
                let goes_on = std::mem::replace(&mut self.inside, !whole);
                if !goes_on && let Some(found) = self.line(people, line.trim_end_matches('\n'), owner) {
                    take(found);
                }
                self.at.line += u64::from(whole);
                self.at.offset += line.len() as u64;
            }
        });
        // Bytes that are not text have another length as text.
        self.at.offset = next;
    }

    /// A line, where it is for this driver.
    fn line(&self, people: &People, line: &str, owner: &str) -> Option<LogLine> {
        let (mark, text) = output::split(line);
        let (actor, agent, label, stderr, of) = match mark {
            Some(Mark { stderr, actor, label }) => {
                let person = people.get(actor)?;
                (actor, person.agent.as_str(), label, stderr, person.owner.as_str())
            }
            // Threads, other programs, code that is not Python: it is theirs who alone are in the process.
            None => {
                let mut present = people.present();
                let (id, first) = present.next()?;
                let (mut agent, mut actor) = (first.agent.as_str(), id.as_str());
                for (_, person) in present {
                    if person.owner != first.owner {
                        return None;
                    }
                    actor = "";
                    agent = if person.agent == agent { agent } else { "" };
                }
                (actor, agent, agent, false, first.owner.as_str())
            }
        };
        let own = of == owner;
        if !own && (of.starts_with("session:") || self.at < self.unowned_from) {
            return None;
        }
        Some(LogLine {
            actor: actor.to_owned(),
            agent: agent.to_owned(),
            label: label.chars().filter(|c| !c.is_control()).collect(),
            pid: self.output.pid,
            stderr,
            own,
            text: cut(text),
        })
    }
}

/// A line as it is told: not longer than a bound.
fn cut(text: &str) -> String {
    match text.len() > caps::PRINTED_LINE_BYTES_MAX {
        true => format!("{}… ({} bytes)", &text[..text.floor_char_boundary(caps::PRINTED_LINE_BYTES_MAX)], text.len()),
        false => text.to_owned(),
    }
}

/// Lines and bytes of each second, and what is beyond them.
struct Pace {
    since: Instant,
    lines: usize,
    bytes: usize,
    left_out: u64,
    /// When it was told last how many were left out.
    told: Instant,
}

impl Pace {
    const SECOND: Duration = Duration::from_secs(1);

    fn new(now: Instant) -> Self {
        Self { since: now, lines: 0, bytes: 0, left_out: 0, told: now }
    }

    fn admits(&mut self, now: Instant, bytes: usize) -> bool {
        if now.saturating_duration_since(self.since) >= Self::SECOND {
            (self.since, self.lines, self.bytes) = (now, 0, 0);
        }
        let fits = self.lines < caps::PRINTED_LINES_PER_S_MAX && self.bytes + bytes <= caps::PRINTED_BYTES_PER_S_MAX;
        if fits {
            self.lines += 1;
            self.bytes += bytes;
        } else {
            self.left_out += 1;
        }
        fits
    }

    fn leaves_out(&mut self, lines: u64) {
        self.left_out += lines;
    }

    /// How many lines were left out, told once a second.
    fn left_out(&mut self, now: Instant) -> u64 {
        if self.left_out == 0 || now.saturating_duration_since(self.told) < Self::SECOND {
            return 0;
        }
        self.told = now;
        std::mem::take(&mut self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(reader: &mut Reader, owner: &str) -> Vec<(String, String, bool)> {
        let mut lines = Vec::new();
        reader.read(owner, &mut |line| lines.push((line.label, line.text, line.own)));
        lines
    }

    fn line(label: &str, text: &str, own: bool) -> (String, String, bool) {
        (label.to_owned(), text.to_owned(), own)
    }

    async fn prints(output: &Output, text: &str) {
        output.copy(text.as_bytes()).await;
    }

    fn output() -> (tempfile::TempDir, Arc<Output>) {
        let folder = tempfile::tempdir().expect("a folder");
        let output = Output::create(folder.path().join("p.log"), 7, watch::Sender::default()).expect("a file");
        (folder, Arc::new(output))
    }

    #[tokio::test]
    async fn a_driver_is_told_what_is_its_own_or_nobodys() {
        let (_folder, output) = output();
        output.enter(&"other".into(), "Other", "session:two");
        prints(&output, "\u{1e}1other\u{1f}Other\u{1e}of another driver\n").await;
        output.enter(&"mine".into(), "Mine", "session:one");
        output.enter(&"V/key".into(), "V", "virtual");
        prints(&output, "\u{1e}1mine\u{1f}f\u{1e}early\n\u{1e}1V/key\u{1f}V/key\u{1e}before\n").await;
        let mut fresh = Reader::of_running(output.clone(), "session:one", true);
        let mut later = Reader::of_running(output.clone(), "session:one", false);
        prints(&output, "not marked\n\u{1e}2V/key\u{1f}V/key\u{1e}after\n\u{1e}1unknown\u{1f}x\u{1e}forged\n").await;
        let after = line("V/key", "after", false);
        assert_eq!(told(&mut fresh, "session:one"), [line("f", "early", true), after.clone()]);
        assert_eq!(told(&mut later, "session:one"), [after]);
        assert_eq!(told(&mut fresh, "session:one"), [], "nothing is told twice");
        assert!(!fresh.is_behind());
    }

    #[tokio::test]
    async fn what_is_not_marked_is_theirs_who_are_alone() {
        let (_folder, output) = output();
        let mut reader = Reader::new(output.clone(), Place::default(), Place::default());
        prints(&output, "of nobody\n").await;
        assert_eq!(told(&mut reader, "session:one"), []);
        output.enter(&"mine".into(), "Mine", "session:one");
        prints(&output, "a thread\n").await;
        assert_eq!(told(&mut reader, "session:one"), [line("Mine", "a thread", true)]);
        output.enter(&"other".into(), "Other", "session:two");
        prints(&output, "a thread\n").await;
        assert_eq!(told(&mut reader, "session:one"), []);
        output.leave(&"other".into());
        prints(&output, "again\n").await;
        assert_eq!(told(&mut reader, "session:one"), [line("Mine", "again", true)]);
    }

    #[tokio::test]
    async fn what_was_put_aside_is_counted() {
        let (_folder, output) = output();
        output.enter(&"mine".into(), "Mine", "session:one");
        let mut reader = Reader::new(output.clone(), Place::default(), Place::default());
        let long = "x".repeat(1 << 20);
        for _ in 0..10 {
            output.line(&long).expect("room");
        }
        let (start, _) = output.bounds();
        assert!(start.cut == 1 && start.line > 0);
        told(&mut reader, "session:one");
        assert_eq!(reader.missed, start.line);
        while reader.is_behind() {
            told(&mut reader, "session:one");
        }
        prints(&output, "short\n").await;
        assert_eq!(
            told(&mut reader, "session:one"),
            [line("Mine", "short", true)],
            "the rest of a long line is no line"
        );
    }

    #[test]
    fn more_than_so_much_a_second_is_left_out_and_counted() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let admitted = (0..caps::PRINTED_LINES_PER_S_MAX + 5).filter(|_| pace.admits(start, 1)).count();
        assert_eq!(admitted, caps::PRINTED_LINES_PER_S_MAX);
        assert_eq!(pace.left_out(start), 0, "told once a second");
        let next = start + Pace::SECOND;
        assert_eq!((pace.left_out(next), pace.left_out(next)), (5, 0));
        assert!(pace.admits(next, 1) && !pace.admits(next, caps::PRINTED_BYTES_PER_S_MAX));
        // What goes on to print is told of, too: a new second of lines is no new second without a word.
        for step in 3..=6 {
            let now = start + Pace::SECOND * step / 2;
            for _ in 0..=caps::PRINTED_LINES_PER_S_MAX {
                pace.admits(now, 1);
            }
            assert_eq!(pace.left_out(now) > 0, step % 2 == 0, "{step}");
        }
    }

    #[test]
    fn a_long_line_is_cut() {
        let text = "é".repeat(caps::PRINTED_LINE_BYTES_MAX);
        let cut = cut(&text);
        assert!(cut.len() < caps::PRINTED_LINE_BYTES_MAX + 40 && cut.ends_with(&format!("… ({} bytes)", text.len())));
    }
}
