//! Answers that must look like something: masks over the vocabulary, by llguidance.

use std::sync::Arc;

use covey_domain::infer::Constraint;
use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::Error;

/// The vocabulary as a tree of bytes, to compile grammars against.
pub(crate) struct Grammars {
    factory: ParserFactory,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammars")
    }
}

impl Grammars {
    /// Reads the tokens of a model whose logits are `vocab` wide.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, eos: &[u32]) -> Result<Self, Error> {
        let info = TokRxInfo::new(vocab as u32, eos.first().copied().unwrap_or(vocab as u32 - 1));
        let trie = TokTrie::from(&info, &words(tokenizer, vocab));
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment)
            .map_err(|e| Error::Request(format!("this model takes no constraints: {e}")))?;
        factory.quiet();
        Ok(Self { factory })
    }

    /// A fresh answer under `constraint`.
    pub fn start(&self, constraint: &Constraint) -> Result<Matcher, Error> {
        let grammar = match constraint {
            Constraint::JsonSchema(schema) => TopLevelGrammar::from_json_schema(compact(schema)),
            Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Constraint::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Constraint::Choice(all) => {
                let texts: Vec<String> = all.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
        };
        let wrong = |e: String| Error::Request(format!("the constraint is wrong: {e}"));
        let parser = self.factory.create_parser(grammar).map_err(|e| wrong(e.to_string()))?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(error) => Err(wrong(error)),
            None => Ok(matcher),
        }
    }
}

/// The schema, with blanks as Python's `json.dumps` sets them: a small model that may add blanks adds them for ever.
pub(crate) fn compact(schema: &Value) -> Value {
    let mut schema = if schema.is_object() { schema.clone() } else { json!({"allOf": [schema]}) };
    if schema["x-guidance"].is_null() {
        schema["x-guidance"] = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    }
    schema
}

/// Bytes of each token; special ones marked as such.
fn words(tokenizer: &Tokenizer, vocab: usize) -> Vec<Vec<u8>> {
    let added = tokenizer.get_added_tokens_decoder();
    let decoder = tokenizer.get_decoder().and_then(|d| serde_json::to_string(d).ok()).unwrap_or_default();
    let byte_level = decoder.contains("ByteLevel");
    (0..vocab as u32)
        .map(|id| {
            let Some(token) = tokenizer.id_to_token(id) else { return Vec::new() };
            match added.get(&id) {
                Some(added) if added.special && !crate::dialect::MARKS.contains(&token.as_str()) => {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], token.as_bytes()].concat()
                }
                Some(_) => token.into_bytes(),
                None if byte_level => token.chars().flat_map(byte_of).collect(),
                None => fallback_byte(&token).unwrap_or_else(|| token.replace('\u{2581}', " ").into_bytes()),
            }
        })
        .collect()
}

/// The byte that GPT-2 shows as this character; other characters are themselves.
fn byte_of(c: char) -> Vec<u8> {
    let code = u32::from(c);
    match code {
        33..=126 | 161..=172 | 174..=255 => vec![code as u8],
        // The bytes in between are shown from U+0100 on, in order.
        256..=288 => vec![(code - 256) as u8],
        289..=322 => vec![(code - 289 + 127) as u8],
        323 => vec![173],
        _ => c.to_string().into_bytes(),
    }
}

/// SentencePiece writes single bytes as `<0x0A>`.
fn fallback_byte(token: &str) -> Option<Vec<u8>> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 2).map(|b| vec![b])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let shown: Vec<char> = {
            let plain = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
            let mut extra = 0;
            (0..256u32)
                .map(|b| {
                    let code = if plain(b) {
                        b
                    } else {
                        extra += 1;
                        255 + extra
                    };
                    char::from_u32(code).unwrap()
                })
                .collect()
        };
        for (byte, c) in shown.into_iter().enumerate() {
            assert_eq!(byte_of(c), [byte as u8], "{c:?}");
        }
        assert_eq!(fallback_byte("<0x0A>"), Some(vec![10]));
        assert_eq!(fallback_byte("<0xyz>"), None);
    }
}
