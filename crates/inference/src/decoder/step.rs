//! One pass over packed tokens.

use covey_kernels::{
    Activations, Attention, BLOCK, Isa, KvStore, Plan, Pool, attend, gelu_mul, rms_norm, rope_angles, rope_pairs,
    rotate, silu_mul,
};

use super::{Decoder, Gated, Layer, Mlp};
use crate::{
    body::Token,
    config::{Gate, Shape},
};

/// Room for a step, kept from one to the next.
#[derive(Debug)]
pub(crate) struct Workspace {
    isa: Isa,
    pool: Pool,
    /// `[tokens, hidden]`: the residual stream.
    x: Vec<f32>,
    /// Inputs of matmuls.
    normed: Activations,
    attended: Activations,
    gated: Activations,
    chosen: Activations,
    qkv: Vec<f32>,
    gate_up: Vec<f32>,
    part: Vec<f32>,
    routes: Vec<f32>,
    /// For each rotation `[tokens, head_dim]`.
    angles: Vec<Vec<f32>>,
    /// `[wanted, vocab]`.
    logits: Vec<f32>,
}

/// Numbers from which a loop over rows is worth a second thread.
const WORTH_A_THREAD: usize = 1 << 14;

impl Workspace {
    pub fn new(pool: Pool) -> Self {
        let isa = Isa::detect();
        let room = || Activations::new(isa);
        Self {
            isa,
            pool,
            x: Vec::new(),
            normed: room(),
            attended: room(),
            gated: room(),
            chosen: room(),
            qkv: Vec::new(),
            gate_up: Vec::new(),
            part: Vec::new(),
            routes: Vec::new(),
            angles: Vec::new(),
            logits: Vec::new(),
        }
    }
}

impl Decoder {
    /// Computes keys and values of all tokens into `kv`, and the logits `[wanted, vocab]` of those that want them.
    ///
    /// Tokens of one sequence come in the order of their positions; what a token sees was computed in an earlier step
    /// or is in this one.
    pub fn step<'w>(&self, work: &'w mut Workspace, kv: &KvStore, tokens: &[Token<'_>]) -> &'w mut [f32] {
        let Shape { hidden, heads, head_dim, .. } = self.shape;
        let plan = Plan::new(&tokens.iter().map(|t| (t.position, t.table)).collect::<Vec<_>>());
        let pool = work.pool.clone();
        work.x.resize(tokens.len() * hidden, 0.0);
        pool.rows(&mut work.x, hidden, grain(hidden), |t, row| {
            self.embedding.row(tokens[t].id as usize, row);
            if self.shape.embedding_scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= self.shape.embedding_scale);
            }
        });
        work.angles.resize(self.ropes.len(), Vec::new());
        for ((frequencies, factor), angles) in self.ropes.iter().zip(&mut work.angles) {
            angles.resize(tokens.len() * head_dim, 0.0);
            pool.rows(angles, head_dim, grain(head_dim * 8), |t, out| {
                rope_angles(frequencies, tokens[t].position, *factor, out);
            });
        }
        for (i, layer) in self.layers.iter().enumerate() {
            self.normed(work, &layer.before_attention);
            work.qkv.resize(tokens.len() * layer.qkv.rows(), 0.0);
            layer.qkv.forward(&mut work.normed, &mut work.qkv, false, &pool);
            self.turn(i, layer, work, kv, tokens);
            let attention = Attention {
                isa: work.isa,
                layer: i,
                heads,
                scale: self.shape.score_scale,
                window: self.shape.layers[i].window,
            };
            let out = work.attended.reset(tokens.len(), heads * head_dim);
            attend(attention, kv, &plan, &work.qkv, layer.qkv.rows(), out, &pool);
            self.add(work, &layer.after_attention, |work, y, add| layer.o.forward(&mut work.attended, y, add, &pool));
            self.normed(work, &layer.before_mlp);
            match &layer.mlp {
                Mlp::Dense(gated) => {
                    self.add(work, &layer.after_mlp, |work, y, add| {
                        let Workspace { normed, gated: room, gate_up, isa, .. } = work;
                        self.gated(gated, *isa, normed, room, gate_up, y, add, &pool);
                    });
                }
                Mlp::Sparse { router, experts } => self.sparse(router, experts, work),
            }
        }
        let wanted: Vec<usize> = (0..tokens.len()).filter(|t| tokens[*t].wanted).collect();
        let rows = work.chosen.reset(wanted.len(), hidden);
        let (x, isa) = (&work.x, work.isa);
        pool.rows(rows, hidden, grain(hidden), |i, row| {
            row.copy_from_slice(&x[wanted[i] * hidden..][..hidden]);
            rms_norm(isa, row, &self.norm, self.shape.eps, self.shape.norm_offset);
        });
        work.logits.resize(wanted.len() * self.head.rows(), 0.0);
        if !wanted.is_empty() {
            self.head.forward(&mut work.chosen, &mut work.logits, false, &pool);
        }
        &mut work.logits
    }

    /// Width of a row of logits.
    pub fn logits(&self) -> usize {
        self.head.rows()
    }

    /// The residual stream, normed, as input of the next matmul.
    fn normed(&self, work: &mut Workspace, weight: &[f32]) {
        let Workspace { x, normed, pool, isa, .. } = work;
        let hidden = self.shape.hidden;
        pool.rows(normed.reset(x.len() / hidden, hidden), hidden, grain(hidden), |t, row| {
            row.copy_from_slice(&x[t * hidden..][..hidden]);
            rms_norm(*isa, row, weight, self.shape.eps, self.shape.norm_offset);
        });
    }

    /// Adds to the residual stream what `f` computes, normed before where the family has it so.
    fn add(&self, work: &mut Workspace, norm: &[f32], f: impl FnOnce(&mut Workspace, &mut [f32], bool)) {
        let mut x = std::mem::take(&mut work.x);
        if norm.is_empty() {
            f(work, &mut x, true);
        } else {
            let mut part = std::mem::take(&mut work.part);
            part.resize(x.len(), 0.0);
            f(work, &mut part, false);
            let hidden = self.shape.hidden;
            for (x, part) in x.chunks_mut(hidden).zip(part.chunks_mut(hidden)) {
                rms_norm(work.isa, part, norm, self.shape.eps, self.shape.norm_offset);
                x.iter_mut().zip(part).for_each(|(x, y)| *x += *y);
            }
            work.part = part;
        }
        work.x = x;
    }

    /// Norms and rotates queries and keys, and writes keys and values to the cache.
    fn turn(&self, i: usize, layer: &Layer, work: &mut Workspace, kv: &KvStore, tokens: &[Token<'_>]) {
        let Shape { heads, kv_heads, head_dim, eps, norm_offset, rope_pairs: pairs, .. } = self.shape;
        let Workspace { angles, qkv, pool, isa, .. } = work;
        let angles = self.shape.layers[i].rope.map(|r| &angles[r]);
        let width = layer.qkv.rows();
        pool.rows(qkv, width, grain(width), |t, row| {
            let token = tokens[t];
            let (q, rest) = row.split_at_mut(heads * head_dim);
            let (k, v) = rest.split_at_mut(kv_heads * head_dim);
            for (part, norm) in [(q, &layer.q_norm), (&mut *k, &layer.k_norm)] {
                for head in part.chunks_mut(head_dim) {
                    if !norm.is_empty() {
                        rms_norm(*isa, head, norm, eps, norm_offset);
                    }
                    if let Some(angles) = angles {
                        let angles = &angles[t * head_dim..][..head_dim];
                        if pairs { rope_pairs(head, angles) } else { rotate(head, angles) }
                    }
                }
            }
            let at = token.position as usize;
            kv.write(i, token.table[at / BLOCK], at % BLOCK, k, v);
        });
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a workspace, borrowed one by one")]
    fn gated(
        &self,
        mlp: &Gated,
        isa: Isa,
        x: &mut Activations,
        room: &mut Activations,
        gate_up: &mut Vec<f32>,
        y: &mut [f32],
        add: bool,
        pool: &Pool,
    ) {
        let (tokens, both) = (x.tokens(), mlp.gate_up.rows());
        gate_up.resize(tokens * both, 0.0);
        mlp.gate_up.forward(x, gate_up, false, pool);
        let gate_up = &*gate_up;
        pool.rows(room.reset(tokens, both / 2), both / 2, grain(both), |t, row| {
            let both = &gate_up[t * both..][..both];
            match self.shape.gate {
                Gate::Silu => silu_mul(isa, both, row),
                Gate::Gelu => gelu_mul(isa, both, row),
            }
        });
        mlp.down.forward(room, y, add, pool);
    }

    /// A mixture of experts: each token meets the `used` likeliest, in the order of their numbers.
    fn sparse(&self, router: &crate::weights::Linear, experts: &[Gated], work: &mut Workspace) {
        let hidden = self.shape.hidden;
        let Some(kinds) = self.shape.experts else { return };
        let Workspace { x, normed, gated, chosen, gate_up, part, routes, pool, isa, .. } = work;
        let tokens = normed.tokens();
        routes.resize(tokens * experts.len(), 0.0);
        router.forward(normed, routes, false, pool);
        let mut members: Vec<Vec<(usize, f32)>> = vec![Vec::new(); experts.len()];
        for (t, scores) in routes.chunks_mut(experts.len()).enumerate() {
            for (expert, weight) in likeliest(scores, kinds.used, kinds.normalized) {
                members[expert].push((t, weight));
            }
        }
        for (expert, members) in experts.iter().zip(&members).filter(|(_, m)| !m.is_empty()) {
            let rows = chosen.reset(members.len(), hidden);
            for (row, (t, _)) in rows.chunks_mut(hidden).zip(members) {
                row.copy_from_slice(&normed.floats()[t * hidden..][..hidden]);
            }
            part.resize(members.len() * hidden, 0.0);
            self.gated(expert, *isa, chosen, gated, gate_up, part, false, pool);
            for (y, (t, weight)) in part.chunks(hidden).zip(members) {
                x[t * hidden..][..hidden].iter_mut().zip(y).for_each(|(x, y)| *x += weight * y);
            }
        }
    }
}

/// The `used` largest of a softmax over `scores`, by index; the first of equals.
pub(crate) fn likeliest(scores: &mut [f32], used: usize, normalized: bool) -> Vec<(usize, f32)> {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = (*s - most).exp());
    let total: f32 = scores.iter().sum();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(used);
    order.sort_unstable();
    let share: f32 = if normalized { order.iter().map(|i| scores[*i]).sum() } else { total };
    order.into_iter().map(|i| (i, scores[i] / share)).collect()
}

/// Rows of `width` numbers that are worth a thread.
fn grain(width: usize) -> usize {
    (WORTH_A_THREAD / width.max(1)).max(1)
}

impl Workspace {
    /// Logits of the last step, `[wanted, vocab]`.
    pub fn logits(&mut self) -> &mut [f32] {
        &mut self.logits
    }
}
