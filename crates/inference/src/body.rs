//! A decoder, on this processor by our kernels or on a device by candle's: what the engine sees of it.

use covey_kernels::{BLOCK, KvStore};

use crate::{
    Error,
    config::Shape,
    decoder::{Decoder, step::Workspace},
    device::{self, Compute},
    weights::{Packing, Source},
};

/// A token of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub id: u32,
    pub position: u32,
    /// Blocks of its sequence, up to its own position at least.
    pub table: &'a [u32],
    /// Whether the logits after it are wanted.
    pub wanted: bool,
}

/// All weights of a decoder.
#[derive(Debug)]
pub(crate) enum Body {
    Cpu(Box<Decoder>),
    Device(Box<device::Decoder>),
}

/// Keys and values of an engine's sequences, and room for its steps.
pub(crate) enum Session {
    Cpu { kv: KvStore, work: Box<Workspace> },
    Device { kv: device::KvStore, logits: Vec<f32> },
}

impl Body {
    /// Reads all weights.
    pub fn load(shape: Shape, source: &mut Source, packing: &Packing, compute: Compute) -> Result<Self, String> {
        match compute {
            Compute::Cpu => Ok(Self::Cpu(Box::new(Decoder::load(shape, source, packing)?))),
            _ => Ok(Self::Device(Box::new(device::Decoder::load(shape, source, packing.quantize, compute)?))),
        }
    }

    pub fn shape(&self) -> &Shape {
        match self {
            Self::Cpu(decoder) => &decoder.shape,
            Self::Device(decoder) => &decoder.shape,
        }
    }

    /// Width of a row of logits.
    pub fn logits(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.logits(),
            Self::Device(decoder) => decoder.logits(),
        }
    }

    /// Positions of a block of keys and values.
    pub fn block(&self) -> usize {
        match self {
            Self::Cpu(_) => BLOCK,
            Self::Device(_) => device::BLOCK,
        }
    }

    /// Bytes of a block of keys and values in all layers.
    pub fn block_bytes(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.kv_shape(1).block_bytes(),
            Self::Device(decoder) => decoder.block_bytes(),
        }
    }

    /// Bytes that are free where it is computed.
    pub fn free_memory(&self) -> u64 {
        match self {
            Self::Cpu(_) => Compute::Cpu.free_memory(),
            Self::Device(decoder) => decoder.compute.free_memory(),
        }
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.bytes(),
            Self::Device(decoder) => decoder.bytes(),
        }
    }

    /// Bytes of weights that a step over one token reads.
    pub fn step_bytes(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.step_bytes(),
            Self::Device(decoder) => decoder.step_bytes(),
        }
    }

    /// Products of a step over one token.
    pub fn step_products(&self) -> usize {
        match self {
            Self::Cpu(decoder) => decoder.step_products(),
            Self::Device(decoder) => decoder.step_products(),
        }
    }

    /// Room for `blocks` blocks.
    pub fn session(&self, blocks: usize) -> Result<Session, Error> {
        Ok(match self {
            Self::Cpu(decoder) => Session::Cpu {
                kv: KvStore::new(decoder.kv_shape(blocks)),
                work: Box::new(Workspace::new(crate::pool())),
            },
            Self::Device(decoder) => Session::Device { kv: decoder.kv_store(blocks)?, logits: Vec::new() },
        })
    }
}

impl Session {
    /// Computes keys and values of all tokens, and the logits `[wanted, vocab]` of those that want them.
    ///
    /// Tokens of one sequence come in the order of their positions; what a token sees was computed in an earlier step
    /// or is in this one.
    pub fn step(&mut self, body: &Body, tokens: &[Token<'_>]) -> Result<&mut [f32], Error> {
        match (self, body) {
            (Self::Cpu { kv, work }, Body::Cpu(decoder)) => Ok(decoder.step(work, kv, tokens)),
            (Self::Device { kv, logits }, Body::Device(decoder)) => {
                *logits = decoder.step(kv, tokens)?;
                Ok(logits)
            }
            // A session is made by its body.
            _ => Err(Error::Broken),
        }
    }

    /// Logits of the last step, `[wanted, vocab]`.
    pub fn logits(&mut self) -> &mut [f32] {
        match self {
            Self::Cpu { work, .. } => work.logits(),
            Self::Device { logits, .. } => logits,
        }
    }

    /// Copies a block of all layers.
    pub fn copy(&mut self, from: u32, to: u32) -> Result<(), Error> {
        match self {
            Self::Cpu { kv, .. } => kv.copy(from, to),
            Self::Device { kv, .. } => kv.copy(from, to)?,
        }
        Ok(())
    }

    /// Begins anew after a step that broke.
    pub fn clear(&mut self) {
        match self {
            Self::Cpu { work, .. } => **work = Workspace::new(crate::pool()),
            Self::Device { logits, .. } => logits.clear(),
        }
    }
}
