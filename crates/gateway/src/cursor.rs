//! Cursors: places in the log of a task between two frames that a protocol makes of it. A reader that comes back names its last one
//! and misses nothing.

use std::{fmt, str::FromStr};

use axum::http::HeaderMap;
use covey_domain::Error;

/// A place between two frames: behind entry `seq` of the log and behind `more` frames of the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cursor {
    pub seq: u64,
    pub more: u32,
}

impl Cursor {
    /// Behind frame `i` of the `count` that entry `seq` makes.
    pub fn within(seq: u64, i: usize, count: usize) -> Self {
        if i + 1 == count { Self { seq, more: 0 } } else { Self { seq: seq - 1, more: i as u32 + 1 } }
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (seq, more) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self { seq: seq.parse().map_err(drop)?, more: more.parse().map_err(drop)? })
    }
}

/// `12`, or `12.1` in the middle of entry 13.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.more {
            0 => write!(f, "{}", self.seq),
            more => write!(f, "{}.{more}", self.seq),
        }
    }
}

/// What a request says of where its reader goes on.
#[derive(Debug)]
pub(crate) struct Requested<'a> {
    name: &'static str,
    text: &'a str,
}

/// Where the reader of a stream goes on: behind `Last-Event-ID`, else behind the parameter `after`, where the protocol has one.
/// `None` = the reader has seen nothing.
pub(crate) fn requested<'a>(headers: &'a HeaderMap, after: Option<&'a str>) -> Option<Requested<'a>> {
    match headers.get("last-event-id") {
        // What a browser sends of itself is newer than the address that it opened first.
        Some(id) => Some(Requested { name: "Last-Event-ID", text: id.to_str().unwrap_or("?") }),
        None => after.map(|text| Requested { name: "after", text }),
    }
}

impl Requested<'_> {
    /// The cursor; `None` where the text is none.
    pub fn cursor(&self) -> Option<Cursor> {
        self.text.parse().ok()
    }

    /// The number of an entry, for protocols that make one frame of each.
    pub fn seq(&self) -> Result<u64, Error> {
        // Numbers of the store are signed.
        let number = self.text.parse().ok().filter(|number| *number < i64::MAX as u64);
        number.ok_or_else(|| Error::invalid(format!("`{}` is the number of an event, not `{}`", self.name, self.text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_as_they_are_written() {
        for cursor in [Cursor::default(), Cursor { seq: 12, more: 0 }, Cursor { seq: 12, more: 3 }] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        assert!("x".parse::<Cursor>().is_err() && "1.y".parse::<Cursor>().is_err());
    }

    #[test]
    fn cursors_of_an_entry_are_in_the_order_of_its_frames() {
        let all: Vec<_> = (0..3).map(|i| Cursor::within(8, i, 3)).collect();
        assert_eq!(all.iter().map(Cursor::to_string).collect::<Vec<_>>(), ["7.1", "7.2", "8"]);
        assert!(all.is_sorted());
        assert_eq!(Cursor::within(8, 0, 1), Cursor { seq: 8, more: 0 });
    }

    #[test]
    fn a_header_comes_before_a_parameter() {
        let mut headers = HeaderMap::new();
        assert!(requested(&headers, None).is_none());
        assert_eq!(requested(&headers, Some("3")).unwrap().seq(), Ok(3));
        headers.insert("last-event-id", "4.1".parse().unwrap());
        let found = requested(&headers, Some("3")).unwrap();
        assert_eq!(found.cursor(), Some(Cursor { seq: 4, more: 1 }));
        let why = "`Last-Event-ID` is the number of an event, not `4.1`";
        assert_eq!(found.seq().unwrap_err().message, why);
        headers.insert("last-event-id", u64::MAX.into());
        assert!(requested(&headers, None).unwrap().seq().is_err(), "the store has no such number");
    }
}
