//! Tokens back to text, piece by piece, and the stop texts that end it.

use tokenizers::Tokenizer;

/// Turns a growing list of tokens into text; holds back bytes of an unfinished character.
#[derive(Clone, Debug, Default)]
pub(crate) struct Detokenizer {
    ids: Vec<u32>,
    prefix: usize,
    read: usize,
}

impl Detokenizer {
    /// The text that `token` adds; empty while a character is unfinished.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> String {
        self.ids.push(token);
        let before = tokenizer.decode(&self.ids[self.prefix..self.read], true).unwrap_or_default();
        let now = tokenizer.decode(&self.ids[self.prefix..], true).unwrap_or_default();
        if now.len() > before.len() && !now.ends_with('\u{fffd}') && now.is_char_boundary(before.len()) {
            self.prefix = self.read;
            self.read = self.ids.len();
            return now[before.len()..].to_owned();
        }
        String::new()
    }
}

/// Finds stop texts in streamed text; holds back what may be the beginning of one.
#[derive(Clone, Debug)]
pub(crate) struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Text that may be shown now, and whether a stop was met.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let longest = self
            .stops
            .iter()
            .flat_map(|s| s.char_indices().map(move |(i, _)| &s[..i]))
            .filter(|head| !head.is_empty() && self.held.ends_with(head))
            .map(str::len)
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - longest);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, at the end.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Tokens whose repetition is looked for, at most and at least.
const LOOKED_FOR: std::ops::RangeInclusive<usize> = 2..=4;

/// Guesses up to `count` tokens behind `tokens`: what followed when their end stood there before, the last time.
/// (Prompt lookup decoding, Saxena 2023.)
pub(crate) fn look_up(tokens: &[u32], count: usize) -> Vec<u32> {
    /// Tokens searched backwards: 4,096 cost some microseconds.
    const FAR: usize = 4096;
    if count == 0 {
        return Vec::new();
    }
    let tokens = &tokens[tokens.len().saturating_sub(FAR)..];
    for length in LOOKED_FOR.rev() {
        if tokens.len() <= length {
            continue;
        }
        let (before, end) = tokens.split_at(tokens.len() - length);
        let found = (0..before.len()).rev().find(|at| tokens[*at..at + length] == *end);
        if let Some(at) = found {
            return tokens[at + length..].iter().take(count).copied().collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_found_across_pieces_and_never_shown() {
        let mut stops = Stops::new(&["END".into(), "\n\n".into()]);
        assert_eq!(stops.push("abc E"), ("abc ".into(), false));
        assert_eq!(stops.push("N"), (String::new(), false));
        assert_eq!(stops.push("X EN"), ("ENX ".into(), false));
        assert_eq!(stops.push("D tail"), (String::new(), true));
        let mut stops = Stops::new(&["é!".into()]);
        assert_eq!(stops.push("caf\u{e9}"), ("caf".into(), false));
        assert_eq!(stops.flush(), "é");
    }
}
