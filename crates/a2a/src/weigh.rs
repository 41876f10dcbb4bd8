//! How much memory a request to send a message will take, seen in its protobuf before it is decoded: see [`covey_domain::json`], of
//! which this is the other form.

use covey_domain::{Error, caps, json};
use prost::encoding::{WireType, decode_key, decode_varint};

use crate::{v1, v03};

/// A message: its weight where it stands in another, and what it has inside that may be many. Other fields are not many, or are skipped
/// by the decoder.
struct Shape {
    own: usize,
    inner: &'static [(u32, &'static Shape)],
}

static TEXT: Shape = Shape { own: size_of::<String>(), inner: &[] };
static VALUE: Shape = Shape { own: json::ITEM, inner: &[(5, &STRUCT), (6, &LIST)] };
static LIST: Shape = Shape { own: json::ARRAY, inner: &[(1, &VALUE)] };
static STRUCT: Shape = Shape { own: json::OBJECT, inner: &[(1, &ENTRY)] };
static ENTRY: Shape = Shape { own: size_of::<String>(), inner: &[(2, &VALUE)] };
static OPTIONS: Shape = Shape { own: 0, inner: &[(1, &TEXT)] };

static PART: Shape = Shape { own: size_of::<v1::Part>(), inner: &[(4, &VALUE), (5, &STRUCT)] };
static MESSAGE: Shape = Shape { own: 0, inner: &[(5, &PART), (6, &STRUCT), (7, &TEXT), (8, &TEXT)] };
static SEND: Shape = Shape { own: 0, inner: &[(2, &MESSAGE), (3, &OPTIONS), (4, &STRUCT)] };

static OLD_DATA: Shape = Shape { own: 0, inner: &[(1, &STRUCT)] };
static OLD_PART: Shape = Shape { own: size_of::<v03::Part>(), inner: &[(3, &OLD_DATA), (4, &STRUCT)] };
static OLD_MESSAGE: Shape = Shape { own: 0, inner: &[(5, &OLD_PART), (6, &STRUCT), (7, &TEXT)] };
static OLD_SEND: Shape = Shape { own: 0, inner: &[(1, &OLD_MESSAGE), (2, &OPTIONS), (3, &STRUCT)] };

/// Deeper than the decoder goes.
const LEVELS_MAX: usize = 100;

impl Shape {
    /// Adds to `total` what `message` takes, as far as it can be read and until that is too much: the decoder refuses the rest.
    fn weigh(&self, mut message: &[u8], level: usize, total: &mut usize) {
        *total += self.own;
        while !message.is_empty() && *total <= caps::JSON_MEMORY_MAX {
            let Ok((tag, wire)) = decode_key(&mut message) else { return };
            let skipped = match wire {
                WireType::Varint => {
                    let Ok(_) = decode_varint(&mut message) else { return };
                    0
                }
                WireType::ThirtyTwoBit => 4,
                WireType::SixtyFourBit => 8,
                WireType::LengthDelimited => {
                    let Ok(length) = decode_varint(&mut message) else { return };
                    usize::try_from(length).unwrap_or(usize::MAX)
                }
                // Groups are of no message of ours.
                WireType::StartGroup | WireType::EndGroup => return,
            };
            let Some((field, rest)) = message.split_at_checked(skipped) else { return };
            message = rest;
            let inner = self.inner.iter().find(|(of, _)| *of == tag).filter(|_| wire == WireType::LengthDelimited);
            if let Some((_, shape)) = inner.filter(|_| level < LEVELS_MAX) {
                shape.weigh(field, level + 1, total);
            }
        }
    }

    fn check(&self, request: &[u8]) -> Result<(), Error> {
        let mut total = 0;
        self.weigh(request, 0, &mut total);
        if total > caps::JSON_MEMORY_MAX { Err(json::too_much("the request")) } else { Ok(()) }
    }
}

/// Refuses a `SendMessageRequest` of 1.0 that would take more than [`caps::JSON_MEMORY_MAX`] when it is decoded.
pub fn check(request: &[u8]) -> Result<(), Error> {
    SEND.check(request)
}

/// The same of 0.3.
pub fn check_old(request: &[u8]) -> Result<(), Error> {
    OLD_SEND.check(request)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::{Fields, Json};

    fn of_value(value: Value) -> [Vec<u8>; 2] {
        let part = v1::Part { content: Some(v1::part::Content::Data(Json(value.clone()))), ..Default::default() };
        let message = v1::Message { parts: vec![part], ..Default::default() };
        let new = v1::SendMessageRequest { message: Some(message), ..Default::default() };
        let Value::Object(fields) = json!({"all": value}) else { unreachable!() };
        let data = v03::DataPart { data: Some(Fields(fields)) };
        let part = v03::Part { part: Some(v03::part::Part::Data(data)), ..Default::default() };
        let message = v03::Message { content: vec![part], ..Default::default() };
        let old = v03::SendMessageRequest { request: Some(message), ..Default::default() };
        [new.encode_to_vec(), old.encode_to_vec()]
    }

    #[test]
    fn a_request_of_many_tiny_values_is_refused_and_a_large_one_of_few_is_not() {
        for item in [json!(null), json!([0]), json!({"a": 0}), json!([[], {}])] {
            for (count, good) in [(10_000, true), (1_500_000, false)] {
                let [new, old] = of_value(Value::Array(vec![item.clone(); count]));
                assert_eq!(check(&new).is_ok(), good, "{count} {item}");
                assert_eq!(check_old(&old).is_ok(), good, "{count} {item} of 0.3");
            }
        }
        let [new, old] = of_value(json!("\u{a}\u{12}".repeat(5_000_000)));
        assert!(check(&new).is_ok() && check_old(&old).is_ok());
    }

    #[test]
    fn a_request_of_many_empty_parts_is_refused() {
        let parts = vec![v1::Part::default(); 1_000_000];
        let message = v1::Message { parts, ..Default::default() };
        assert!(
            check(&v1::SendMessageRequest { message: Some(message), ..Default::default() }.encode_to_vec()).is_err()
        );
        let (content, metadata) = (vec![v03::Part::default(); 1_000_000], Some(Fields::default()));
        let message = v03::Message { content, metadata, ..Default::default() };
        assert!(
            check_old(&v03::SendMessageRequest { request: Some(message), ..Default::default() }.encode_to_vec())
                .is_err()
        );
    }

    #[test]
    fn noise_is_left_to_the_decoder() {
        for noise in [&[0xff; 40][..], &[0x12, 0xff, 0xff, 0xff, 0x7f], &[0x12], &[0x0b, 0x0c], b"hello"] {
            assert!(check(noise).is_ok() && check_old(noise).is_ok());
        }
    }
}
