//! One pass over packed tokens on a device.

use candle_core::{DType, IndexOp as _, Module as _, Result, Tensor, quantized::QMatMul};
use candle_nn::{ops, rotary_emb};

use super::{Decoder, Gated, KvStore, Layer, Linear, Matrix, Mlp, attend::Plan};
use crate::{
    body::Token,
    config::{Gate, Shape},
    decoder::step::likeliest,
};

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let parts = self.parts.iter().map(|part| match part {
            Matrix::Floats(matrix) => x.matmul(&matrix.t()?),
            Matrix::Blocks(blocks) => {
                let y = QMatMul::QTensor(blocks.clone()).forward(&x.to_dtype(DType::F32)?)?;
                y.to_dtype(x.dtype())
            }
        });
        let mut parts = parts.collect::<Result<Vec<_>>>()?;
        let y = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 1)? };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// Cosines and sines `[tokens, head_dim / 2]` of the positions of a step.
type Angles = (Tensor, Tensor);

impl Decoder {
    /// Computes keys and values of all tokens into `kv`, and the logits `[wanted, vocab]` of those that want them.
    pub fn step(&self, kv: &KvStore, tokens: &[Token<'_>]) -> Result<Vec<f32>> {
        let device = &self.place.device;
        let plan = Plan::new(tokens, self)?;
        let ids = Tensor::from_iter(tokens.iter().map(|t| t.id), device)?;
        let mut x = self.embedding.index_select(&ids, 0)?.to_dtype(self.place.dtype)?;
        if self.shape.embedding_scale != 1.0 {
            x = (x * f64::from(self.shape.embedding_scale))?;
        }
        let angles = self.ropes.iter().map(|rope| self.angles(rope, tokens)).collect::<Result<Vec<_>>>()?;
        for (i, layer) in self.layers.iter().enumerate() {
            let seen = self.attention(i, layer, &x, kv, &angles, &plan)?;
            x = self.add(&x, layer.o.forward(&seen)?, layer.after_attention.as_ref())?;
            let normed = self.normed(&x, &layer.before_mlp)?;
            x = match &layer.mlp {
                Mlp::Dense(gated) => self.add(&x, self.gated(gated, &normed)?, layer.after_mlp.as_ref())?,
                Mlp::Sparse { router, experts } => self.sparse(router, experts, x, &normed)?,
            };
        }
        let wanted: Vec<u32> = (0..tokens.len() as u32).filter(|t| tokens[*t as usize].wanted).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let rows = x.index_select(&Tensor::new(wanted, device)?, 0)?;
        let logits = self.head.forward(&self.normed(&rows, &self.norm)?)?;
        logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    fn angles(&self, (frequencies, factor): &(Vec<f64>, f64), tokens: &[Token<'_>]) -> Result<Angles> {
        let half = frequencies.len();
        let mut row = vec![0.0; 2 * half];
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for token in tokens {
            covey_kernels::rope_angles(frequencies, token.position, *factor, &mut row);
            cos.extend_from_slice(&row[..half]);
            sin.extend_from_slice(&row[half..]);
        }
        let up =
            |values| Tensor::from_vec(values, (tokens.len(), half), &self.place.device)?.to_dtype(self.place.dtype);
        Ok((up(cos)?, up(sin)?))
    }

    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        ops::rms_norm(&x.contiguous()?, weight, self.shape.eps)
    }

    /// Adds `y` to the residual stream, normed before where the family has it so.
    fn add(&self, x: &Tensor, y: Tensor, norm: Option<&Tensor>) -> Result<Tensor> {
        match norm {
            Some(norm) => x + self.normed(&y, norm)?,
            None => x + y,
        }
    }

    /// What the tokens see: `[tokens, heads * head_dim]`.
    fn attention(
        &self,
        i: usize,
        layer: &Layer,
        x: &Tensor,
        kv: &KvStore,
        angles: &[Angles],
        plan: &Plan,
    ) -> Result<Tensor> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let tokens = x.dim(0)?;
        let shape = self.shape.layers[i];
        let qkv = layer.qkv.forward(&self.normed(x, &layer.before_attention)?)?;
        let part = |from: usize, heads: usize, norm: Option<&Tensor>| {
            let part = qkv.narrow(1, from * head_dim, heads * head_dim)?.contiguous()?;
            let part = part.reshape((tokens, heads, head_dim))?;
            let part = match norm {
                Some(norm) => self.normed(&part, norm)?,
                None => part,
            };
            match shape.rope.map(|r| &angles[r]) {
                Some(angles) => self.rotated(&part, angles),
                None => Ok(part),
            }
        };
        let q = part(0, heads, layer.q_norm.as_ref())?.to_dtype(self.kv_dtype)?;
        let k = part(heads, kv_heads, layer.k_norm.as_ref())?.reshape((tokens, kv_heads * head_dim))?;
        let v = qkv.narrow(1, (heads + kv_heads) * head_dim, kv_heads * head_dim)?;
        for (store, rows) in [(&kv.keys[i], k), (&kv.values[i], v)] {
            store.scatter_set(&plan.slots, &rows.to_dtype(self.kv_dtype)?.contiguous()?, 0)?;
        }
        let seen = plan.attend(self, &q, &kv.keys[i], &kv.values[i], shape.window)?;
        seen.reshape((tokens, heads * head_dim))?.to_dtype(x.dtype())
    }

    /// Turns each head `[tokens, heads, head_dim]` by its token's position.
    fn rotated(&self, x: &Tensor, (cos, sin): &Angles) -> Result<Tensor> {
        if self.shape.rope_pairs {
            let heads_first = x.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
            return rotary_emb::rope_i(&heads_first, cos, sin)?.i(0)?.transpose(0, 1)?.contiguous();
        }
        rotary_emb::rope_thd(&x.unsqueeze(0)?, cos, sin)?.squeeze(0)
    }

    fn gated(&self, mlp: &Gated, x: &Tensor) -> Result<Tensor> {
        let both = mlp.gate_up.forward(x)?;
        let inner = match self.shape.gate {
            Gate::Silu => ops::swiglu(&both)?,
            Gate::Gelu => {
                let half = both.dim(1)? / 2;
                (both.narrow(1, 0, half)?.gelu()? * both.narrow(1, half, half)?)?
            }
        };
        mlp.down.forward(&inner)
    }

    /// A mixture of experts: each token meets the `used` likeliest. The host decides which: one transfer a layer.
    fn sparse(&self, router: &Linear, experts: &[Gated], x: Tensor, normed: &Tensor) -> Result<Tensor> {
        let Some(kinds) = self.shape.experts else { return Ok(x) };
        let mut members: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default(); experts.len()];
        let scores = router.forward(normed)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        for (t, mut scores) in scores.into_iter().enumerate() {
            for (expert, weight) in likeliest(&mut scores, kinds.used, kinds.normalized) {
                members[expert].0.push(t as u32);
                members[expert].1.push(weight);
            }
        }
        let mut sum = x;
        for (expert, (rows, weights)) in experts.iter().zip(members).filter(|(_, (rows, _))| !rows.is_empty()) {
            let count = rows.len();
            let rows = Tensor::new(rows, &self.place.device)?;
            let weights = Tensor::from_vec(weights, (count, 1), &self.place.device)?.to_dtype(sum.dtype())?;
            let y = self.gated(expert, &normed.index_select(&rows, 0)?)?.broadcast_mul(&weights)?;
            sum = sum.index_add(&rows, &y, 0)?;
        }
        Ok(sum)
    }
}
