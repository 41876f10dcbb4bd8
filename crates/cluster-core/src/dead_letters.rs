//! What is not tried again: calls that ended their actor's process time after time, and tasks out of attempts.
//!
//! The newest of them are kept here and in the store, which has the same bound.

use std::{collections::VecDeque, sync::Arc};

use covey_domain::{DeadLetter, Error, caps};

use crate::head::{Head, Output, Write};

/// The newest of them, oldest first.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters(VecDeque<Arc<DeadLetter>>);

impl DeadLetters {
    fn push(&mut self, letter: Arc<DeadLetter>) {
        if self.0.len() == caps::DEAD_LETTERS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(letter);
    }
}

impl Head {
    /// What was given up, oldest first; of the last [`caps::DEAD_LETTERS_MAX`].
    pub fn dead_letters(&self) -> Vec<Arc<DeadLetter>> {
        self.dead_letters.0.iter().cloned().collect()
    }

    /// A call or a task was given up.
    pub fn dead_letter(&mut self, letter: DeadLetter) {
        let DeadLetter { method, error, .. } = letter;
        let error = Error { message: cut(error.message), detail: None, ..error };
        let letter = Arc::new(DeadLetter { method: cut(method), error, ..letter });
        self.dead_letters.push(letter.clone());
        self.out.push_back(Output::Write(Write::DeadLetter(letter)));
    }

    /// Brings a dead letter back from the store, oldest first and before the first verb.
    pub fn restore_dead_letter(&mut self, letter: DeadLetter) {
        self.dead_letters.push(Arc::new(letter));
    }
}

/// A text that takes no more room than it should.
fn cut(mut text: String) -> String {
    if text.len() > caps::DEAD_LETTER_TEXT_MAX {
        text.truncate(text.floor_char_boundary(caps::DEAD_LETTER_TEXT_MAX));
        text.push('…');
    }
    text
}
