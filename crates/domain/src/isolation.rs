//! How much a process of user code is kept from, who may ask for how much of it, and what a worker can give.
//!
//! A worker's own level is the floor of all that it starts; an agent may ask for more. What a process makes is at least as
//! strict as that process.

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind};

/// How much a process is kept from; the later, the more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Nothing: it may do what the worker may.
    None,
    /// As much as the kernel allows without keeping usual code from working.
    #[default]
    Default,
    /// No network, fewer system calls; a process that cannot have all of it does not start.
    Strict,
}

impl Isolation {
    /// All of them, least first.
    pub const ALL: [Self; 3] = [Self::None, Self::Default, Self::Strict];

    /// Its name on every wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Default => "default",
            Self::Strict => "strict",
        }
    }

    /// What a process of this level may make of an agent that asks for `asked`. One that asks for nothing becomes strict where
    /// the process is; one that asks for less than the process has is refused.
    pub fn of_made(self, asked: Option<Self>) -> Result<Option<Self>, Error> {
        let asked_or_usual = asked.unwrap_or_default();
        if asked_or_usual >= self {
            return Ok(asked);
        }
        match asked {
            None => Ok(Some(self)),
            Some(less) => {
                let text = format!(
                    "code whose isolation is `{}` makes nothing whose isolation is `{}`",
                    self.name(),
                    less.name()
                );
                Err(Error::new(ErrorKind::PermissionDenied, text)
                    .hint("leave `isolation` out: what an actor makes is as strict as that actor"))
            }
        }
    }
}

impl std::str::FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|level| level.name() == text);
        found.ok_or_else(|| "use none, default or strict".to_owned())
    }
}

/// The levels that a worker gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its own level: nothing there has less.
    pub least: Isolation,
    /// The strictest that it can give.
    pub most: Isolation,
    /// Why that is not `strict`, in the words of its kernel; empty = it is, or it did not say.
    pub lacks: String,
}

impl Default for Offer {
    /// Of a worker that says nothing, as those of earlier versions do.
    fn default() -> Self {
        Self { least: Isolation::Default, most: Isolation::Default, lacks: String::new() }
    }
}

impl Offer {
    /// The level of a process whose agent asks for this.
    pub fn level(&self, asked: Option<Isolation>) -> Isolation {
        asked.map_or(self.least, |asked| asked.max(self.least))
    }

    /// Why an agent that asks for this cannot be there.
    pub fn refuses(&self, asked: Option<Isolation>) -> Option<String> {
        match asked? {
            Isolation::None if self.least > Isolation::None => {
                Some("needs a worker that was started with `--isolation none`".to_owned())
            }
            asked if asked > self.most => {
                let why = if self.lacks.is_empty() { String::new() } else { format!(" ({})", self.lacks) };
                Some(format!("needs a worker that can isolate with `{}`{why}", asked.name()))
            }
            Isolation::None | Isolation::Default | Isolation::Strict => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that can be asked for.
    fn asked() -> impl Iterator<Item = Option<Isolation>> {
        Isolation::ALL.into_iter().map(Some).chain([None])
    }

    #[test]
    fn what_a_process_makes_is_as_strict_as_it_is() {
        for (own, asked) in Isolation::ALL.into_iter().flat_map(|own| asked().map(move |asked| (own, asked))) {
            match own.of_made(asked) {
                Ok(made) => {
                    assert!(made.unwrap_or_default() >= own, "{own:?} makes {made:?} of {asked:?}");
                    assert!(asked.is_none() || made == asked, "what is said holds");
                }
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::PermissionDenied);
                    assert!(asked.is_some_and(|asked| asked < own), "{own:?} may make {asked:?}");
                }
            }
        }
        assert_eq!(Isolation::Default.of_made(None), Ok(None), "as its worker says");
    }

    #[test]
    fn a_worker_gives_no_less_than_its_own_and_no_more_than_it_can() {
        let offers = Isolation::ALL.into_iter().flat_map(|least| Isolation::ALL.map(|most| (least, most)));
        for (least, most) in offers.filter(|(least, most)| least <= most) {
            let offer = Offer { least, most, lacks: String::new() };
            for asked in asked() {
                let given = offer.level(asked);
                let fits = given >= least && given <= most && asked.is_none_or(|asked| given >= asked);
                let less = asked == Some(Isolation::None) && least > Isolation::None;
                assert_eq!(offer.refuses(asked).is_none(), fits && !less, "{offer:?} for {asked:?}");
            }
        }
    }
}
