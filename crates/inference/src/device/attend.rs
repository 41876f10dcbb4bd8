//! Attention over blocks of keys and values on a device: candle's paged flash attention where it is, else keys and values
//! gathered from their blocks.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops;

use super::{BLOCK, Decoder};
use crate::body::Token;

/// Queries of one sequence that gathered attention takes at once: its scores are `[heads, queries, positions]`.
const QUERIES_AT_ONCE: usize = 128;

/// Tokens of one sequence in a step, one behind the other.
#[derive(Clone, Copy)]
struct Run<'a> {
    first: usize,
    count: usize,
    /// Position of the first.
    position: usize,
    table: &'a [u32],
}

/// What attention of a step needs to know, the same for all layers.
pub(super) struct Plan {
    /// For each token the row of its keys and values, once for each of its numbers: `[tokens, kv_heads * head_dim]`.
    pub slots: Tensor,
    kind: Kind,
}

enum Kind {
    #[cfg(feature = "cuda")]
    Paged(Paged),
    Gathered(Gathered),
}

impl Plan {
    pub fn new(tokens: &[Token<'_>], decoder: &Decoder) -> Result<Self> {
        let device = &decoder.place.device;
        let width = decoder.shape.kv_heads * decoder.shape.head_dim;
        let slot = |t: &Token<'_>| {
            let at = t.position as usize;
            t.table[at / BLOCK] * BLOCK as u32 + (at % BLOCK) as u32
        };
        let slots = Tensor::from_iter(tokens.iter().map(slot), device)?.unsqueeze(1)?;
        let slots = slots.broadcast_as((tokens.len(), width))?.contiguous()?;
        let mut runs: Vec<Run<'_>> = Vec::new();
        for (first, token) in tokens.iter().enumerate() {
            let position = token.position as usize;
            match runs.last_mut() {
                Some(run) if std::ptr::eq(run.table, token.table) && run.position + run.count == position => {
                    run.count += 1;
                }
                _ => runs.push(Run { first, count: 1, position, table: token.table }),
            }
        }
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            return Ok(Self { slots, kind: Kind::Paged(Paged::new(&runs, device)?) });
        }
        Ok(Self { slots, kind: Kind::Gathered(Gathered::new(&runs, device)?) })
    }

    /// What queries `[tokens, heads, head_dim]` see of keys and values: `[tokens, heads, head_dim]`.
    pub fn attend(
        &self,
        decoder: &Decoder,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        window: Option<usize>,
    ) -> Result<Tensor> {
        match &self.kind {
            #[cfg(feature = "cuda")]
            Kind::Paged(paged) => paged.attend(decoder, q, k, v, window),
            Kind::Gathered(gathered) => gathered.attend(decoder, q, k, v, window),
        }
    }
}

/// Blocks of runs in rows of one length, `[runs, blocks]`. What is behind a run's last position is not read.
fn tables(runs: &[Run<'_>], device: &Device) -> Result<(Tensor, usize)> {
    let used = |run: &Run<'_>| (run.position + run.count).div_ceil(BLOCK);
    let most = runs.iter().map(used).max().unwrap_or(0);
    let rows = runs.iter().flat_map(|run| (0..most).map(|i| if i < used(run) { run.table[i] } else { 0 }));
    Ok((Tensor::from_vec(rows.collect(), (runs.len(), most), device)?, most))
}

/// For `candle_flash_attn::flash_attn_varlen_paged_windowed`.
#[cfg(feature = "cuda")]
struct Paged {
    /// `[runs + 1]`: where queries and keys of each run begin, if keys were packed.
    queries: Tensor,
    keys: Tensor,
    tables: Tensor,
    queries_max: usize,
    keys_max: usize,
}

#[cfg(feature = "cuda")]
impl Paged {
    fn new(runs: &[Run<'_>], device: &Device) -> Result<Self> {
        let sums = |of: fn(&Run<'_>) -> usize| {
            let mut sum = 0;
            let rest = runs.iter().map(|run| {
                sum += of(run) as u32;
                sum
            });
            let all: Vec<u32> = std::iter::once(0).chain(rest).collect();
            Tensor::new(all, device)
        };
        let end = |run: &Run<'_>| run.position + run.count;
        Ok(Self {
            queries: sums(|run| run.count)?,
            keys: sums(end)?,
            tables: tables(runs, device)?.0,
            queries_max: runs.iter().map(|run| run.count).max().unwrap_or(0),
            keys_max: runs.iter().map(end).max().unwrap_or(0),
        })
    }

    fn attend(&self, decoder: &Decoder, q: &Tensor, k: &Tensor, v: &Tensor, window: Option<usize>) -> Result<Tensor> {
        let paged = (k.dim(0)? / BLOCK, BLOCK, decoder.shape.kv_heads, decoder.shape.head_dim);
        candle_flash_attn::flash_attn_varlen_paged_windowed(
            &q.contiguous()?,
            &k.reshape(paged)?,
            &v.reshape(paged)?,
            &self.queries,
            &self.keys,
            &self.tables,
            None,
            self.queries_max,
            self.keys_max,
            decoder.shape.score_scale,
            window.map(|window| window - 1),
            Some(0),
            BLOCK,
            None,
        )
    }
}

/// Runs that are computed side by side: all that decode one token, and pieces of each longer one.
struct Gathered {
    parts: Vec<Part>,
    /// Where each token's row is when the parts are put together; `None` = there already.
    order: Option<Tensor>,
}

struct Part {
    /// Tokens of each run.
    count: usize,
    /// `[runs * count]`: their rows among all queries.
    rows: Tensor,
    /// `[runs * blocks]`
    tables: Tensor,
    /// How far back each key is from each query, `[runs, 1, 1, count, blocks * BLOCK]`; below zero is ahead.
    back: Tensor,
}

impl Gathered {
    fn new(runs: &[Run<'_>], device: &Device) -> Result<Self> {
        let (mut one, mut several) = (Vec::new(), Vec::new());
        for run in runs {
            if run.count == 1 {
                one.push(*run);
            }
            for from in (0..run.count).step_by(QUERIES_AT_ONCE).filter(|_| run.count > 1) {
                let count = QUERIES_AT_ONCE.min(run.count - from);
                several.push(vec![Run { first: run.first + from, count, position: run.position + from, ..*run }]);
            }
        }
        let all = if one.is_empty() { several } else { [vec![one], several].concat() };
        let order: Vec<usize> = all.iter().flatten().flat_map(|run| run.first..run.first + run.count).collect();
        let mut places = vec![0u32; order.len()];
        order.iter().enumerate().for_each(|(place, row)| places[*row] = place as u32);
        let order = if order.is_sorted() { None } else { Some(Tensor::new(places, device)?) };
        let parts = all.iter().map(|runs| Part::new(runs, device)).collect::<Result<_>>()?;
        Ok(Self { parts, order })
    }

    fn attend(&self, decoder: &Decoder, q: &Tensor, k: &Tensor, v: &Tensor, window: Option<usize>) -> Result<Tensor> {
        let seen = self.parts.iter().map(|part| part.attend(decoder, q, k, v, window)).collect::<Result<Vec<_>>>()?;
        let seen = Tensor::cat(&seen, 0)?;
        match &self.order {
            Some(order) => seen.index_select(order, 0),
            None => Ok(seen),
        }
    }
}

impl Part {
    /// Runs of one length.
    fn new(runs: &[Run<'_>], device: &Device) -> Result<Self> {
        let count = runs[0].count;
        let rows = runs.iter().flat_map(|run| run.first as u32..(run.first + run.count) as u32);
        let rows = Tensor::from_iter(rows, device)?;
        let (tables, blocks) = tables(runs, device)?;
        let keys = blocks * BLOCK;
        let queries = runs.iter().flat_map(|run| run.position..run.position + run.count);
        let back: Vec<f32> = queries.flat_map(|at| (0..keys).map(move |key| at as f32 - key as f32)).collect();
        let back = Tensor::from_vec(back, (runs.len(), 1, 1, count, keys), device)?;
        Ok(Self { count, rows, tables: tables.flatten_all()?, back })
    }

    fn attend(&self, decoder: &Decoder, q: &Tensor, k: &Tensor, v: &Tensor, window: Option<usize>) -> Result<Tensor> {
        let (heads, kv_heads, head_dim) = (decoder.shape.heads, decoder.shape.kv_heads, decoder.shape.head_dim);
        let (runs, _, _, count, keys) = self.back.dims5()?;
        let group = heads / kv_heads;
        let q = q.index_select(&self.rows, 0)?.reshape((runs, count, kv_heads, group, head_dim))?;
        let q = q.permute((0, 2, 3, 1, 4))?.contiguous()?.reshape((runs, kv_heads, group * count, head_dim))?;
        let gathered = |store: &Tensor| {
            let blocks = store.reshape((store.dim(0)? / BLOCK, BLOCK * kv_heads * head_dim))?;
            let rows = blocks.index_select(&self.tables, 0)?.reshape((runs, keys, kv_heads, head_dim))?;
            rows.transpose(1, 2)?.contiguous()
        };
        let scores = q.matmul(&gathered(k)?.transpose(2, 3)?.contiguous()?)?.to_dtype(DType::F32)?;
        let scores = (scores * f64::from(decoder.shape.score_scale))?;
        let scores = scores.reshape((runs, kv_heads, group, count, keys))?;
        let mut seen = self.back.ge(0f32)?;
        if let Some(window) = window {
            seen = (seen * self.back.lt(window as f32)?)?;
        }
        let hidden = Tensor::new(f32::NEG_INFINITY, q.device())?.broadcast_as(scores.shape())?;
        let scores = seen.broadcast_as(scores.shape())?.where_cond(&scores, &hidden)?;
        let shares = ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        let shares = shares.reshape((runs, kv_heads, group * count, keys))?;
        let seen = shares.matmul(&gathered(v)?)?.reshape((runs, kv_heads, group, count, head_dim))?;
        seen.permute((0, 3, 1, 2, 4))?.contiguous()?.reshape((runs * self.count, heads, head_dim))
    }
}
