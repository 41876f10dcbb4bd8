//! What a disk may give to the reader of the log, for `fuzz/`: nothing of it may panic, and nothing is read that was not written.

use crate::{
    Batch,
    log::format::{AREA, HEAD, Head, Header, parse, write},
};

/// A file of the log, its records, and the batches in them.
pub fn file(bytes: &[u8]) {
    let Some(Ok(header)) = Header::read(bytes) else { return };
    let area = bytes.get(AREA..).unwrap_or_default();
    for record in parse(area, header.cycle, header.first).records {
        batch(&area[record.body]);
    }
}

/// What a record holds. What was saved of a broken one can be written and read again.
pub fn batch(json: &[u8]) {
    let (saved, broken) = Batch::decode_or_salvage(json);
    let text = saved.encode().expect("what was read can be written").text;
    let again = Batch::decode(text.as_bytes());
    assert!(again.is_ok(), "{again:?} of {broken:?}");
}

/// Records that were written, and then a byte that is another: no record is made up.
pub fn damaged(bytes: &[u8]) {
    let [cycle, at, flip, bodies @ ..] = bytes else { return };
    let (cycle, mut area, mut record) = (u64::from(*cycle) + 1, Vec::new(), Vec::new());
    let bodies: Vec<&[u8]> = bodies.chunks(7).collect();
    for (number, body) in (1..).zip(&bodies) {
        write(&mut record, Head { cycle, number, synced: number - 1 }, body).expect("it is small");
        area.extend(&record);
    }
    if let Some(byte) = (usize::from(*at) * HEAD / 4).checked_rem(area.len()).and_then(|at| area.get_mut(at)) {
        *byte ^= flip;
    }
    let parsed = parse(&area, cycle, 1);
    for record in parsed.records {
        let written = bodies[record.number as usize - 1];
        assert_eq!(&area[record.body], written, "record {}", record.number);
    }
    assert!(parsed.watermark <= bodies.len() as u64);
}
