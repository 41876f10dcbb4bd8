//! One call of a tool, read while it is written: a JSON object with a name and arguments.

/// What a piece of text brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// All of it belongs to the call; some to its arguments.
    More { arguments: String },
    /// The call ends after `taken` bytes.
    End { arguments: String, taken: usize },
    /// This is no call.
    Broken,
}

/// A call in the making. It follows nesting and strings only; whether the arguments are right JSON is not its business.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    place: Place,
    key: String,
    name: Option<String>,
    /// The value in the making, of keys that are not told piece by piece.
    value: String,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Arguments that came before the name.
    early: String,
    had_arguments: bool,
    /// Nothing but arguments comes.
    only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Before,
    /// A key or the end may come.
    Between,
    Key,
    Colon,
    /// A value may begin.
    Value,
    Inside,
}

impl Scan {
    /// `{"name": …, "arguments": {…}}`.
    pub fn object() -> Self {
        Self {
            place: Place::Before,
            key: String::new(),
            name: None,
            value: String::new(),
            depth: 0,
            in_string: false,
            escaped: false,
            early: String::new(),
            had_arguments: false,
            only: false,
        }
    }

    /// `{…}`, the arguments of `name`.
    pub fn arguments(name: String) -> Self {
        Self { place: Place::Value, key: "arguments".into(), name: Some(name), only: true, ..Self::object() }
    }

    /// The function's name, once it is known.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn tells(&self) -> bool {
        matches!(self.key.as_str(), "arguments" | "parameters")
    }

    /// More text.
    pub fn push(&mut self, text: &str) -> Found {
        let mut out = String::new();
        for (at, c) in text.char_indices() {
            let end = at + c.len_utf8();
            match self.place {
                Place::Before => match c {
                    '{' => self.place = Place::Between,
                    c if c.is_whitespace() => {}
                    _ => return Found::Broken,
                },
                Place::Between => match c {
                    '"' => {
                        self.key.clear();
                        self.place = Place::Key;
                    }
                    '}' => {
                        if self.name.is_none() {
                            return Found::Broken;
                        }
                        if !self.had_arguments {
                            out.push_str("{}");
                        }
                        return Found::End { arguments: out, taken: end };
                    }
                    ',' => {}
                    c if c.is_whitespace() => {}
                    _ => return Found::Broken,
                },
                Place::Key => match c {
                    '"' => self.place = Place::Colon,
                    c => self.key.push(c),
                },
                Place::Colon => match c {
                    ':' => self.place = Place::Value,
                    c if c.is_whitespace() => {}
                    _ => return Found::Broken,
                },
                Place::Value => {
                    if c.is_whitespace() {
                        continue;
                    }
                    self.value.clear();
                    self.depth = 0;
                    self.place = Place::Inside;
                    if self.inside(c, &mut out) {
                        return Found::End { arguments: out, taken: end };
                    }
                }
                Place::Inside => {
                    let bare = self.depth == 0 && !self.in_string;
                    if bare && matches!(c, ',' | '}') {
                        // A number or a word has ended before this character, which belongs to the object.
                        if !self.close(&mut out) {
                            return Found::Broken;
                        }
                        if c == '}' {
                            if self.name.is_none() {
                                return Found::Broken;
                            }
                            if !self.had_arguments {
                                out.push_str("{}");
                            }
                            return Found::End { arguments: out, taken: end };
                        }
                        continue;
                    }
                    if self.inside(c, &mut out) {
                        return Found::End { arguments: out, taken: end };
                    }
                }
            }
            if self.place == Place::Between && self.key == "name" && self.name.is_none() {
                return Found::Broken;
            }
        }
        Found::More { arguments: out }
    }

    /// A character of a value; true when that ends the call.
    fn inside(&mut self, c: char, out: &mut String) -> bool {
        self.value.push(c);
        let told = self.tells() && !self.value.starts_with('"');
        if told {
            if self.name.is_some() {
                out.push(c)
            } else {
                self.early.push(c)
            }
            self.had_arguments = true;
        }
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
        } else {
            match c {
                '"' => self.in_string = true,
                '{' | '[' => self.depth += 1,
                '}' | ']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        let whole = self.depth == 0 && !self.in_string && matches!(c, '"' | '}' | ']');
        if !whole {
            return false;
        }
        self.close(out);
        self.only
    }

    /// The value is whole; false when the call cannot be one.
    fn close(&mut self, out: &mut String) -> bool {
        self.place = Place::Between;
        if self.key == "name" {
            let Ok(name) = serde_json::from_str::<String>(&self.value) else { return false };
            self.name = Some(name);
            out.push_str(&std::mem::take(&mut self.early));
        } else if self.tells() && self.value.starts_with('"') {
            // Some models write the arguments as text of JSON.
            let Ok(text) = serde_json::from_str::<String>(&self.value) else { return false };
            self.had_arguments = true;
            if self.name.is_some() { out.push_str(&text) } else { self.early.push_str(&text) }
        }
        true
    }
}
