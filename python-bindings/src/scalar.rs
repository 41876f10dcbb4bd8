//! Values that most streams have most of: text, numbers, booleans and `None`. Their pickles are made and read here, which takes a
//! third of what the interpreter takes for one. They are pickles like any other: who does not know them here reads them there.

use bytes::Bytes;
use covey_proto::v1::{Codec, Payload};
use pyo3::{
    prelude::*,
    types::{PyBool, PyFloat, PyInt, PyString},
};

/// Bytes of text that is small enough to be sent as it is.
const TEXT_MAX: usize = 64 << 10;
/// How every one begins and ends: PROTO 5, STOP.
const HEAD: [u8; 2] = [0x80, 5];
const STOP: u8 = b'.';

const NONE: u8 = b'N';
const TRUE: u8 = 0x88;
const FALSE: u8 = 0x89;
/// A whole number of 32 bits, and one of `n` bytes.
const BININT: u8 = b'J';
const LONG1: u8 = 0x8a;
const BINFLOAT: u8 = b'G';
/// Text with its length in one byte, and in four.
const SHORT_BINUNICODE: u8 = 0x8c;
const BINUNICODE: u8 = b'X';

/// The pickle of a scalar; `None` for anything else, text that is no UTF-8 and what is large.
pub(crate) fn encode(value: &Bound<'_, PyAny>) -> Option<Payload> {
    let mut body = Vec::with_capacity(16);
    body.extend(HEAD);
    if let Ok(text) = value.cast_exact::<PyString>() {
        let text = text.to_str().ok().filter(|text| text.len() <= TEXT_MAX)?;
        body.reserve(text.len());
        match u8::try_from(text.len()) {
            Ok(length) => body.extend([SHORT_BINUNICODE, length]),
            Err(_) => {
                body.push(BINUNICODE);
                body.extend((text.len() as u32).to_le_bytes());
            }
        }
        body.extend(text.as_bytes());
    } else if let Ok(number) = value.cast_exact::<PyInt>() {
        let number: i64 = number.extract().ok()?;
        match i32::try_from(number) {
            Ok(number) => {
                body.push(BININT);
                body.extend(number.to_le_bytes());
            }
            Err(_) => {
                body.extend([LONG1, 8]);
                body.extend(number.to_le_bytes());
            }
        }
    } else if let Ok(number) = value.cast_exact::<PyFloat>() {
        body.push(BINFLOAT);
        body.extend(number.value().to_be_bytes());
    } else if let Ok(flag) = value.cast_exact::<PyBool>() {
        body.push(if flag.is_true() { TRUE } else { FALSE });
    } else if value.is_none() {
        body.push(NONE);
    } else {
        return None;
    }
    body.push(STOP);
    Some(Payload { codec: Codec::Pickle.into(), body: Bytes::from(body), buffers: Vec::new() })
}

/// The scalar that [`fn@encode`] wrote; `None` for any other payload.
pub(crate) fn decode(py: Python<'_>, payload: &Payload) -> Option<Py<PyAny>> {
    if payload.codec() != Codec::Pickle || !payload.buffers.is_empty() {
        return None;
    }
    let [head @ .., STOP] = payload.body.strip_prefix(&HEAD)? else { return None };
    let (kind, rest) = head.split_first()?;
    let text = |text: &[u8]| Some(PyString::new(py, str::from_utf8(text).ok()?).into_any().unbind());
    match (*kind, rest) {
        (NONE, []) => Some(py.None()),
        (TRUE, []) => Some(PyBool::new(py, true).to_owned().into_any().unbind()),
        (FALSE, []) => Some(PyBool::new(py, false).to_owned().into_any().unbind()),
        (BININT, _) => Some(i32::from_le_bytes(rest.try_into().ok()?).into_pyobject(py).ok()?.into_any().unbind()),
        (LONG1, [8, rest @ ..]) => {
            Some(i64::from_le_bytes(rest.try_into().ok()?).into_pyobject(py).ok()?.into_any().unbind())
        }
        (BINFLOAT, _) => Some(PyFloat::new(py, f64::from_be_bytes(rest.try_into().ok()?)).into_any().unbind()),
        (SHORT_BINUNICODE, [length, rest @ ..]) if usize::from(*length) == rest.len() => text(rest),
        (BINUNICODE, _) => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            if u32::from_le_bytes(*length) as usize == rest.len() { text(rest) } else { None }
        }
        _ => None,
    }
}
