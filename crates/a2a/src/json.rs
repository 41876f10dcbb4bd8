//! `google.protobuf.Value` and `Struct` as `serde_json` has them: JSON in and out is untouched (a whole number stays one),
//! and gRPC gets protobuf's form.

use std::collections::BTreeMap;

use prost::{
    DecodeError, Message,
    bytes::{Buf, BufMut},
    encoding::{DecodeContext, WireType},
};
use prost_types::{ListValue, Struct, value::Kind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

/// Any JSON value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(pub Value);

/// A JSON object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fields(pub Map<String, Value>);

/// Whole numbers up to here have one double each.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

fn to_proto(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(x) => Kind::BoolValue(*x),
        Value::Number(x) => Kind::NumberValue(x.as_f64().unwrap_or(0.0)),
        Value::String(x) => Kind::StringValue(x.clone()),
        Value::Array(all) => Kind::ListValue(ListValue { values: all.iter().map(to_proto).collect() }),
        Value::Object(fields) => Kind::StructValue(struct_of(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn struct_of(fields: &Map<String, Value>) -> Struct {
    Struct { fields: fields.iter().map(|(name, value)| (name.clone(), to_proto(value))).collect() }
}

fn of_proto(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(x)) => Value::Bool(x),
        Some(Kind::NumberValue(x)) if x.fract() == 0.0 && x.abs() < WHOLE_MAX => Value::from(x as i64),
        Some(Kind::NumberValue(x)) => Number::from_f64(x).map_or(Value::Null, Value::Number),
        Some(Kind::StringValue(x)) => Value::String(x),
        Some(Kind::ListValue(all)) => all.values.into_iter().map(of_proto).collect(),
        Some(Kind::StructValue(all)) => Value::Object(map_of(all.fields)),
    }
}

fn map_of(fields: BTreeMap<String, prost_types::Value>) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name, of_proto(value))).collect()
}

impl Message for Json {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        to_proto(&self.0).encode_raw(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let mut value = to_proto(&self.0);
        value.merge_field(tag, wire_type, buf, ctx)?;
        self.0 = of_proto(value);
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        to_proto(&self.0).encoded_len()
    }

    fn clear(&mut self) {
        self.0 = Value::Null;
    }
}

impl Message for Fields {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        struct_of(&self.0).encode_raw(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        // One entry of the map comes at a time.
        let mut one = Struct::default();
        one.merge_field(tag, wire_type, buf, ctx)?;
        self.0.extend(map_of(one.fields));
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        struct_of(&self.0).encoded_len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_goes_through_protobuf_and_back() {
        let value = json!({"a": [1, -2.5, null, true, "x"], "b": {"c": {}}, "count": 42});
        let bytes = Json(value.clone()).encode_to_vec();
        assert_eq!(prost_types::Value::decode(&bytes[..]).unwrap(), to_proto(&value));
        assert_eq!(Json::decode(&bytes[..]).unwrap().0, value);
        let Value::Object(fields) = value else { unreachable!() };
        let bytes = Fields(fields.clone()).encode_to_vec();
        assert_eq!(Fields::decode(&bytes[..]).unwrap().0, fields);
    }
}
