//! Weight formats and their packed form.
//!
//! A matrix `[rows, cols]` is cut into tiles of 16 rows, and a tile into units of up to 256 columns. Inside a unit the
//! same four columns of all sixteen rows lie side by side, so that one 512-bit load and one instruction advance
//! sixteen dot products. The packed form replaces the source's bytes; it is at most 3 % larger (`Q6_K`: 1 %).
//!
//! Unit of `n` sub-blocks of 32 columns, in order, each part padded to 64 bytes:
//!
//! | format | scales | quants |
//! |---|---|---|
//! | `Q8_0` | `d` f16 `[n][16]` | `[n][8][16][4]` u8, raised by 128 |
//! | `Q4_0` | `d` f16 `[n][16]` | `[n][4][16][4]`: low half byte columns 0–15, high 16–31, raised by 8 |
//! | `Q4_K` | `d`, `dmin` f16 `[16]`, scales u8 `[8][16]`, mins u8 `[8][16]` | as `Q4_0`, not raised |
//! | `Q5_K` | as `Q4_K` | as `Q4_0`, then the fifth bits `[8][64]` |
//! | `Q6_K` | `d` f16 `[16]`, scales i8 `[16][16]` | as `Q4_0`, then bits five and six `[8][128]`, raised by 32 |
//! | `F32` `F16` | | `[cols][16]` |
//! | `BF16` | | `[cols / 2][16][2]` |
//!
//! The source formats are llama.cpp's (`ggml-common.h`), as GGUF files hold them.
#![expect(unsafe_code, reason = "tiles are written by many threads into disjoint parts of one buffer")]

use half::{bf16, f16};

use crate::{Buffer, Pool, TILE};

/// How numbers are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Brain floats: the upper half of 32-bit floats.
    Bf16,
    /// 4 bits, a scale for 32.
    Q4_0,
    /// 8 bits, a scale for 32.
    Q8_0,
    /// 4 bits, scale and minimum for 32 in super-blocks of 256.
    Q4K,
    /// 5 bits, scale and minimum for 32 in super-blocks of 256.
    Q5K,
    /// 6 bits, a scale for 16 in super-blocks of 256.
    Q6K,
}

impl std::str::FromStr for Format {
    type Err = String;

    /// By the names of GGUF, in either case, `_` or not: `q8_0`, `Q4_K`, `bf16`.
    fn from_str(text: &str) -> Result<Self, String> {
        let plain: String = text.chars().filter(|c| *c != '_').collect::<String>().to_lowercase();
        Ok(match plain.as_str() {
            "f32" => Self::F32,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "q40" => Self::Q4_0,
            "q80" => Self::Q8_0,
            "q4k" => Self::Q4K,
            "q5k" => Self::Q5K,
            "q6k" => Self::Q6K,
            _ => return Err(format!("`{text}` is no format; f32, f16, bf16, q4_0, q8_0, q4_k, q5_k and q6_k are")),
        })
    }
}

/// Columns of a unit.
pub(crate) const UNIT: usize = 256;
/// Columns of a sub-block: what shares a scale of the activations.
pub(crate) const SUB: usize = 32;

impl Format {
    /// Columns that one block of the source covers; a row has a whole number of them.
    pub fn block_cols(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q8_0 => SUB,
            Self::Q4K | Self::Q5K | Self::Q6K => UNIT,
        }
    }

    /// Bytes of one block of the source.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Whether activations are floats, too, instead of quantized to 8 bits.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Bytes of a packed unit of `subs` sub-blocks.
    pub(crate) fn unit_bytes(self, subs: usize) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => subs * SUB * TILE * self.block_bytes(),
            Self::Q4_0 => scale_bytes(subs) + subs * 256,
            Self::Q8_0 => scale_bytes(subs) + subs * 512,
            Self::Q4K => K_HEAD + 2048,
            Self::Q5K => K_HEAD + 2048 + 512,
            Self::Q6K => Q6_HEAD + 2048 + 1024,
        }
    }

    fn tile_bytes(self, cols: usize) -> usize {
        if self.is_float() {
            let cols = if self == Self::Bf16 { cols.next_multiple_of(2) } else { cols };
            return cols * TILE * self.block_bytes();
        }
        let tail = cols % UNIT / SUB;
        cols / UNIT * self.unit_bytes(UNIT / SUB) + if tail > 0 { self.unit_bytes(tail) } else { 0 }
    }
}

/// Bytes of `d` and `dmin`, scales and mins in front of a `Q4_K` or `Q5_K` unit.
pub(crate) const K_HEAD: usize = 64 + 128 + 128;
/// Bytes of `d` (padded) and the scales in front of a `Q6_K` unit.
pub(crate) const Q6_HEAD: usize = 64 + 256;

/// Bytes of the `d` of `subs` sub-blocks, padded to a cache line.
pub(crate) fn scale_bytes(subs: usize) -> usize {
    (subs * 32).next_multiple_of(64)
}

/// A weight matrix `[rows, cols]`, packed.
#[derive(Debug)]
pub struct Packed {
    format: Format,
    rows: usize,
    cols: usize,
    tile_bytes: usize,
    data: Buffer,
}

impl Packed {
    /// Packs `rows × cols` numbers held row by row in `source`, as GGUF or safetensors files hold them.
    ///
    /// # Panics
    /// When `source` has not the size that shape and format ask for. `cols` is a multiple of the format's block.
    pub fn pack(format: Format, rows: usize, cols: usize, source: &[u8], pool: &Pool) -> Self {
        assert_eq!(cols % format.block_cols(), 0, "a row is a whole number of blocks");
        let row_bytes = cols / format.block_cols() * format.block_bytes();
        assert_eq!(source.len(), rows * row_bytes, "the bytes of a matrix");
        let tile_bytes = format.tile_bytes(cols);
        let tiles = rows.div_ceil(TILE);
        let data = Buffer::zeroed(tiles * tile_bytes);
        let start = SendPtr(data.as_mut_ptr());
        pool.ranges(tiles, 1, |range| {
            for tile in range {
                // SAFETY: each tile is written by one piece, and lies inside the buffer.
                let out = unsafe { std::slice::from_raw_parts_mut(start.at(tile * tile_bytes), tile_bytes) };
                for r in 0..TILE.min(rows - tile * TILE) {
                    let at = (tile * TILE + r) * row_bytes;
                    pack_row(format, r, cols, &source[at..at + row_bytes], out);
                }
            }
        });
        Self { format, rows, cols, tile_bytes, data }
    }

    /// Puts matrices of one format and width under each other, as one.
    ///
    /// # Panics
    /// When formats or widths differ, or a matrix but the last has rows that fill no whole tile.
    pub fn stack(parts: &[&Packed]) -> Self {
        let first = parts.first().expect("at least one part");
        let whole = parts[..parts.len() - 1].iter().all(|p| p.rows.is_multiple_of(TILE));
        assert!(whole && parts.iter().all(|p| p.format == first.format && p.cols == first.cols), "parts of one kind");
        let mut data = Buffer::zeroed(parts.iter().map(|p| p.data.len()).sum());
        let mut at = 0;
        for part in parts {
            data.bytes_mut()[at..at + part.data.len()].copy_from_slice(part.data.bytes());
            at += part.data.len();
        }
        let rows = parts.iter().map(|p| p.rows).sum();
        Self { format: first.format, rows, cols: first.cols, tile_bytes: first.tile_bytes, data }
    }

    /// How numbers are held.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows: outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes in memory; what a step reads of it.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn tile(&self, tile: usize) -> *const u8 {
        &raw const self.data.bytes()[tile * self.tile_bytes]
    }

    /// Row `row` as floats, `[cols]`: an embedding.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "a row of the matrix");
        let tile = &self.data.bytes()[row / TILE * self.tile_bytes..][..self.tile_bytes];
        unpack_row(self.format, row % TILE, tile, out);
    }
}

/// A pointer that pieces on other threads write through, each into its own part.
pub(crate) struct SendPtr<T>(pub *mut T);

impl<T> Clone for SendPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SendPtr<T> {}

// SAFETY: whoever makes one answers for disjoint parts.
unsafe impl<T> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    /// The element `n` further on.
    ///
    /// # Safety
    /// It lies in the same allocation.
    pub unsafe fn at(self, n: usize) -> *mut T {
        // SAFETY: the caller's.
        unsafe { self.0.add(n) }
    }
}

fn put16(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + 2].copy_from_slice(&bytes[..2]);
}

fn get16(data: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([data[at], data[at + 1]]).to_f32()
}

/// Where column `col` of row `r` lies among the 512 quants of its sub-block.
fn place(r: usize, col: usize) -> usize {
    col / 4 * 64 + r * 4 + col % 4
}

/// Where column `col` of row `r` lies in a tile of floats.
fn float_place(format: Format, r: usize, col: usize) -> usize {
    if format == Format::Bf16 { (col / 2 * TILE + r) * 2 + col % 2 } else { col * TILE + r }
}

fn put_nibble(quants: &mut [u8], r: usize, col: usize, q: u8) {
    let i = place(r, col);
    quants[i % 256] |= (q & 15) << if i < 256 { 0 } else { 4 };
}

fn nibble(quants: &[u8], r: usize, col: usize) -> u8 {
    let i = place(r, col);
    quants[i % 256] >> if i < 256 { 0 } else { 4 } & 15
}

/// The 6-bit scale and minimum of sub-block `j` of a `Q4_K` or `Q5_K` block.
fn k_scale(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

fn pack_row(format: Format, r: usize, cols: usize, source: &[u8], out: &mut [u8]) {
    let block = format.block_bytes();
    if format.is_float() {
        for (col, x) in source.chunks_exact(block).enumerate() {
            out[float_place(format, r, col) * block..][..block].copy_from_slice(x);
        }
        return;
    }
    let mut out = out;
    for (unit, start) in (0..cols).step_by(UNIT).enumerate() {
        let subs = (cols - start).min(UNIT) / SUB;
        let (here, rest) = out.split_at_mut(format.unit_bytes(subs));
        out = rest;
        match format {
            Format::Q8_0 | Format::Q4_0 => {
                let (scales, quants) = here.split_at_mut(scale_bytes(subs));
                for s in 0..subs {
                    let b = &source[(unit * (UNIT / SUB) + s) * block..][..block];
                    put16(scales, (s * TILE + r) * 2, b);
                    if format == Format::Q8_0 {
                        for (col, q) in b[2..].iter().enumerate() {
                            quants[s * 512 + place(r, col)] = q ^ 0x80;
                        }
                    } else {
                        for col in 0..SUB {
                            let q = b[2 + col % 16] >> if col < 16 { 0 } else { 4 };
                            put_nibble(&mut quants[s * 256..][..256], r, col, q);
                        }
                    }
                }
            }
            Format::Q4K | Format::Q5K => {
                let b = &source[unit * block..][..block];
                put16(here, r * 2, b);
                put16(here, 32 + r * 2, &b[2..]);
                let (high, low) = if format == Format::Q5K { (&b[16..48], &b[48..]) } else { (&b[16..16], &b[16..]) };
                for s in 0..subs {
                    let (scale, min) = k_scale(&b[4..16], s);
                    here[64 + s * TILE + r] = scale;
                    here[192 + s * TILE + r] = min;
                    for col in 0..SUB {
                        let q = low[s / 2 * 32 + col] >> if s % 2 == 0 { 0 } else { 4 };
                        put_nibble(&mut here[K_HEAD + s * 256..][..256], r, col, q);
                        if format == Format::Q5K {
                            let i = place(r, col);
                            here[K_HEAD + 2048 + s * 64 + i % 64] |= (high[col] >> s & 1) << (i / 64);
                        }
                    }
                }
            }
            Format::Q6K => {
                let b = &source[unit * block..][..block];
                put16(here, r * 2, &b[208..]);
                for (s, scale) in b[192..208].iter().enumerate() {
                    here[64 + s * TILE + r] = *scale;
                }
                for col in 0..UNIT {
                    let (half, part, l) = (col / 128, col % 128 / 32, col % 32);
                    let low = b[half * 64 + part % 2 * 32 + l] >> (part / 2 * 4) & 15;
                    let high = b[128 + half * 32 + l] >> (part * 2) & 3;
                    let (s, c) = (col / SUB, col % SUB);
                    put_nibble(&mut here[Q6_HEAD + s * 256..][..256], r, c, low);
                    let i = place(r, c);
                    here[Q6_HEAD + 2048 + s * 128 + i % 128] |= high << (i / 128 * 2);
                }
            }
            Format::F32 | Format::F16 | Format::Bf16 => unreachable!("floats have returned"),
        }
    }
}

fn unpack_row(format: Format, r: usize, tile: &[u8], out: &mut [f32]) {
    match format {
        Format::F32 => {
            for (col, x) in out.iter_mut().enumerate() {
                let at = (col * TILE + r) * 4;
                *x = f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]]);
            }
        }
        Format::F16 => {
            for (col, x) in out.iter_mut().enumerate() {
                *x = get16(tile, (col * TILE + r) * 2);
            }
        }
        Format::Bf16 => {
            for (col, x) in out.iter_mut().enumerate() {
                let at = float_place(format, r, col) * 2;
                *x = bf16::from_le_bytes([tile[at], tile[at + 1]]).to_f32();
            }
        }
        _ => {
            let mut rest = tile;
            for out in out.chunks_mut(UNIT) {
                let subs = out.len() / SUB;
                let (unit, after) = rest.split_at(format.unit_bytes(subs));
                rest = after;
                for (s, out) in out.chunks_mut(SUB).enumerate() {
                    unpack_sub(format, r, unit, subs, s, out);
                }
            }
        }
    }
}

fn unpack_sub(format: Format, r: usize, unit: &[u8], subs: usize, s: usize, out: &mut [f32]) {
    let head = scale_bytes(subs);
    for (col, x) in out.iter_mut().enumerate() {
        let i = place(r, col);
        *x = match format {
            Format::Q8_0 => get16(unit, (s * TILE + r) * 2) * (f32::from(unit[head + s * 512 + i]) - 128.0),
            Format::Q4_0 => {
                get16(unit, (s * TILE + r) * 2) * (f32::from(nibble(&unit[head + s * 256..], r, col)) - 8.0)
            }
            Format::Q4K | Format::Q5K => {
                let scale = get16(unit, r * 2) * f32::from(unit[64 + s * TILE + r]);
                let min = get16(unit, 32 + r * 2) * f32::from(unit[192 + s * TILE + r]);
                let mut q = nibble(&unit[K_HEAD + s * 256..], r, col);
                if format == Format::Q5K {
                    q |= (unit[K_HEAD + 2048 + s * 64 + i % 64] >> (i / 64) & 1) << 4;
                }
                scale * f32::from(q) - min
            }
            Format::Q6K => {
                let scale = get16(unit, r * 2) * f32::from(unit[64 + (s * 2 + col / 16) * TILE + r] as i8);
                let high = unit[Q6_HEAD + 2048 + s * 128 + i % 128] >> (i / 128 * 2) & 3;
                let q = nibble(&unit[Q6_HEAD + s * 256..], r, col) | high << 4;
                scale * (f32::from(q) - 32.0)
            }
            Format::F32 | Format::F16 | Format::Bf16 => unreachable!("floats have no sub-blocks"),
        };
    }
}
