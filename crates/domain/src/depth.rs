//! How deep JSON is nested. What is kept is read back by a parser that gives up at 128 levels, and the record around a
//! value takes some of them, so a value above [`caps::JSON_DEPTH_MAX`] is taken by no door: it would be written and never read.
//!
//! The measure is a serializer that writes nothing: it sees every field of a type, so that no new one is forgotten.

use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use crate::{Error, caps};

/// Refuses a value that is nested deeper than [`caps::JSON_DEPTH_MAX`] inside `around` levels of its record; `what` names it.
pub fn check<T: Serialize + ?Sized>(what: &str, value: &T, around: usize) -> Result<(), Error> {
    value.serialize(Levels(caps::JSON_DEPTH_MAX + around)).map_err(|TooDeep| {
        Error::invalid(format!("{what} is nested more than {} levels deep", caps::JSON_DEPTH_MAX))
            .hint("send what is deeper as text, or as a file")
    })
}

/// Levels that may still be opened.
#[derive(Clone, Copy)]
struct Levels(usize);

/// There is one level too many.
#[derive(Debug)]
struct TooDeep;

impl std::fmt::Display for TooDeep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nested too deep")
    }
}

impl std::error::Error for TooDeep {}

impl serde::ser::Error for TooDeep {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        // Domain types have no failing serializer.
        Self
    }
}

impl Levels {
    fn open(self) -> Result<Self, TooDeep> {
        self.0.checked_sub(1).map(Self).ok_or(TooDeep)
    }
}

macro_rules! flat {
    ($($name:ident($of:ty);)*) => {$(
        #[inline]
        fn $name(self, _: $of) -> Result<(), TooDeep> {
            Ok(())
        }
    )*};
}

impl Serializer for Levels {
    type Ok = ();
    type Error = TooDeep;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    flat! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_f32(f32);
        serialize_f64(f64);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_unit_struct(&'static str);
    }

    fn serialize_none(self) -> Result<(), TooDeep> {
        Ok(())
    }

    fn serialize_unit(self) -> Result<(), TooDeep> {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), TooDeep> {
        value.serialize(self)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), TooDeep> {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), TooDeep> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), TooDeep> {
        value.serialize(self.open()?)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, TooDeep> {
        self.open()
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, TooDeep> {
        self.open()
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, TooDeep> {
        self.open()
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, TooDeep> {
        self.open()?.open()
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, TooDeep> {
        self.open()
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, TooDeep> {
        self.open()
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, TooDeep> {
        self.open()?.open()
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, _: &T) -> Result<(), TooDeep> {
        Ok(())
    }
}

macro_rules! inside {
    ($($of:ident :: $name:ident;)*) => {$(
        impl $of for Levels {
            type Ok = ();
            type Error = TooDeep;

            fn $name<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TooDeep> {
                value.serialize(*self)
            }

            fn end(self) -> Result<(), TooDeep> {
                Ok(())
            }
        }
    )*};
}

inside! {
    SerializeSeq::serialize_element;
    SerializeTuple::serialize_element;
    SerializeTupleStruct::serialize_field;
    SerializeTupleVariant::serialize_field;
}

macro_rules! named {
    ($($of:ident)*) => {$(
        impl $of for Levels {
            type Ok = ();
            type Error = TooDeep;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Result<(), TooDeep> {
                value.serialize(*self)
            }

            fn end(self) -> Result<(), TooDeep> {
                Ok(())
            }
        }
    )*};
}

named! { SerializeStruct SerializeStructVariant }

impl SerializeMap for Levels {
    type Ok = ();
    type Error = TooDeep;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Result<(), TooDeep> {
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TooDeep> {
        value.serialize(*self)
    }

    fn end(self) -> Result<(), TooDeep> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        TaskEvent,
        event::{Content, Delta, Outcome},
        task::TaskInput,
    };

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, level| if level % 2 == 0 { json!([inner]) } else { json!({"k": inner}) })
    }

    #[test]
    fn a_value_may_have_so_many_levels_and_not_one_more_wherever_it_is() {
        for (levels, good) in [(0, true), (caps::JSON_DEPTH_MAX, true), (caps::JSON_DEPTH_MAX + 1, false)] {
            let value = nested(levels);
            assert_eq!(check("it", &value, 0).is_ok(), good, "{levels}");
            let parts = vec![Content::Data(value.clone())];
            let input = TaskInput { content: parts.clone(), ..TaskInput::default() };
            assert_eq!(input.check().is_ok(), good, "input of {levels}");
            let (by, message_id, answers) = ("me".into(), None, None);
            let result = Some(value.clone());
            let message = Some(serde_json::to_value(&parts).unwrap());
            let end = |finish: &str, result| TaskEvent::Finished {
                outcome: Outcome::Completed { finish: finish.into(), result },
                usage: Default::default(),
            };
            for event in [
                TaskEvent::Steered { parts, by, message_id, answers },
                TaskEvent::PartDelta { part: "p".into(), delta: Delta::Data(value) },
                end("stop", result),
                end(crate::event::REPLY, message),
            ] {
                assert_eq!(event.check().is_ok(), good, "{levels} in {event:?}");
            }
        }
    }
}
