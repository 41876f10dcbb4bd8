//! One choice of an answer in the making: what is drawn, what it means, and what may follow.

use std::time::Instant;

use covey_domain::infer::{Constraint, Delta, Finish, Prompt, Sampling, Work};

use super::{AnswerId, DEFAULT_NEW_TOKENS};
use crate::{
    Error, Generator,
    dialect::Reader,
    sampler::{Drawn, Sampler},
    text,
};

/// A request that was understood.
pub(super) struct Begun {
    pub tokens: Vec<u32>,
    pub sampling: Sampling,
    pub reader: Option<Reader>,
    pub constraint: Option<Constraint>,
    pub call: Option<Constraint>,
    pub one_call: bool,
}

/// What a token brought.
pub(super) struct Digested {
    pub delta: Delta,
    pub finish: Option<Finish>,
    /// Whether the token is a part of the answer.
    pub shown: bool,
}

/// One choice of an answer in the making.
#[derive(Clone)]
pub(super) struct Stream {
    pub answer: AnswerId,
    pub choice: u32,
    pub sampler: Sampler,
    pub matcher: Option<llguidance::Matcher>,
    /// What the answer must look like once its thoughts are over.
    pub pending: Option<Constraint>,
    /// What a call of a tool must look like from its opening mark on.
    pub call: Option<Constraint>,
    /// Whether `matcher` is of a call, behind which plain text goes on.
    pub in_call: bool,
    /// Whether an answer ends with its first call.
    pub one_call: bool,
    pub reader: Option<Reader>,
    /// Made since the last delta.
    pub untold: Vec<u32>,
    pub logprobs: Option<usize>,
    pub detokenizer: text::Detokenizer,
    pub stops: text::Stops,
    pub made: u64,
    pub room: u64,
    pub ignore_eos: bool,
    /// When its last token came, or its request.
    pub at: Instant,
}

impl Begun {
    /// Reads a request; `places` positions are there at most.
    pub fn read(generator: &Generator, work: Work, places: usize) -> Result<Self, Error> {
        let encode = |text: &str, special: bool| {
            let encoded = generator.tokenizer.encode(text, special);
            let encoded = encoded.map_err(|e| Error::Request(format!("failed to tokenize: {e}")))?;
            Ok::<_, Error>(encoded.get_ids().to_vec())
        };
        let plain = |tokens: Vec<u32>, sampling: Sampling| Self {
            tokens,
            constraint: sampling.constraint.clone(),
            sampling,
            reader: None,
            call: None,
            one_call: false,
        };
        let begun = match work {
            Work::Chat(chat) => {
                let template = generator
                    .template
                    .as_ref()
                    .ok_or_else(|| Error::Request("this model has no chat template; use completions".into()))?;
                if chat.messages.iter().any(|m| !m.images.is_empty()) {
                    return Err(Error::Request("this model sees no pictures".into()));
                }
                let prompt = template.render(&chat)?;
                Self {
                    tokens: encode(&prompt, false)?,
                    reader: Some(template.dialect.reader(&prompt, &chat)),
                    constraint: template.dialect.whole(&chat),
                    call: template.dialect.call_body(&chat),
                    one_call: chat.one_call,
                    sampling: chat.sampling,
                }
            }
            Work::Complete { prompt: Prompt::Text(prompt), sampling } => plain(encode(&prompt, true)?, sampling),
            Work::Complete { prompt: Prompt::Tokens(tokens), sampling } => {
                let vocab = generator.body.shape().vocab;
                if let Some(token) = tokens.iter().find(|t| **t as usize >= vocab) {
                    return Err(Error::Request(format!("token {token} is not in the vocabulary of {vocab}")));
                }
                plain(tokens, sampling)
            }
            Work::Embed { .. } | Work::Rank { .. } | Work::Transcribe(_) => {
                return Err(Error::Request(
                    "this model makes text of text; it makes no vectors and hears nothing".into(),
                ));
            }
        };
        let context = generator.body.shape().context.min(places);
        let count = begun.tokens.len();
        if count == 0 {
            return Err(Error::Request("the prompt is empty".into()));
        }
        if count >= context {
            return Err(Error::Request(format!("the prompt has {count} tokens, the model takes {}", context - 1)));
        }
        Ok(begun)
    }
}

impl Stream {
    /// The beginning of an answer's first choice.
    pub fn new(generator: &Generator, begun: &Begun, at: Instant) -> Result<Self, Error> {
        let Begun { tokens, sampling, reader, constraint, call, one_call } = begun;
        let matcher = constraint.as_ref().map(|c| generator.constrain(c)).transpose()?;
        let thinks = reader.as_ref().is_some_and(Reader::thinks);
        let context = generator.body.shape().context;
        let room = sampling.max_tokens.map_or(DEFAULT_NEW_TOKENS, |n| n as usize).min(context - tokens.len());
        Ok(Self {
            answer: 0,
            choice: 0,
            sampler: Sampler::new(sampling, tokens),
            // A model thinks as it likes; the constraint was only checked.
            matcher: matcher.filter(|_| !thinks),
            pending: constraint.clone().filter(|_| thinks),
            call: call.clone(),
            in_call: false,
            one_call: *one_call,
            reader: reader.clone(),
            untold: Vec::new(),
            logprobs: sampling.logprobs.map(usize::from),
            detokenizer: text::Detokenizer::default(),
            stops: text::Stops::new(&sampling.stop),
            made: 0,
            room: room as u64,
            ignore_eos: sampling.ignore_eos,
            at,
        })
    }

    /// Draws the token of `position`, of those that the grammar allows.
    pub fn draw(&mut self, eos: &[u32], logits: &mut [f32], position: usize) -> Drawn {
        let Some(matcher) = &mut self.matcher else {
            let drawn = self.sampler.draw(logits, position, self.logprobs);
            self.sampler.saw(drawn.token);
            return drawn;
        };
        let end = eos.first().copied().unwrap_or(logits.len() as u32 - 1);
        // A grammar that fails (a bound of its parser was met) ends the answer where it stands.
        let Ok(allowed) = matcher.compute_mask_or_eos() else {
            return Drawn { token: end, ended: true, ..Drawn::default() };
        };
        let may_end = allowed.is_allowed(end);
        for (token, logit) in logits.iter_mut().enumerate() {
            let token = token as u32;
            if !(allowed.is_allowed(token) || may_end && eos.contains(&token)) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let mut drawn = self.sampler.draw(logits, position, self.logprobs);
        self.sampler.saw(drawn.token);
        if eos.contains(&drawn.token) || drawn.token == end {
            drawn.token = end;
            drawn.ended = true;
        } else {
            drawn.ended = matcher.consume_token(drawn.token).is_err() || matcher.is_stopped();
        }
        drawn
    }

    /// Reads a token into its answer: its text, what that means, and what may follow it.
    pub fn digest(&mut self, generator: &Generator, token: u32, ended: bool) -> Digested {
        self.made += 1;
        self.untold.push(token);
        let mut delta = Delta::default();
        let mut finish = None;
        let shown;
        if generator.eos.contains(&token) && (ended || !self.ignore_eos) {
            // The end of an answer and what belongs to a stop text are no part of it.
            finish = Some(Finish::Stop);
            shown = false;
        } else {
            let dialect = self.reader.as_ref().and(generator.template.as_ref()).map(|t| &t.dialect);
            let piece = match dialect.and_then(|d| d.mark(token)) {
                Some(mark) => mark.to_owned(),
                None => self.detokenizer.push(&generator.tokenizer, token),
            };
            let (text, stopped) = self.stops.push(&piece);
            shown = !stopped;
            match &mut self.reader {
                Some(reader) => reader.push(&text, &mut delta),
                None => delta.text = text,
            }
            let call_over = ended && std::mem::take(&mut self.in_call);
            if call_over {
                self.matcher = None;
            }
            if stopped || ended && (!call_over || self.one_call) {
                finish = Some(Finish::Stop);
            } else if self.made >= self.room {
                finish = Some(Finish::Length);
            }
        }
        if finish.is_some() {
            let rest = self.stops.flush();
            match &mut self.reader {
                Some(reader) => {
                    reader.push(&rest, &mut delta);
                    reader.flush(&mut delta);
                    if reader.calls() > 0 && finish == Some(Finish::Stop) {
                        finish = Some(Finish::ToolCalls);
                    }
                }
                None => delta.text.push_str(&rest),
            }
        } else if let Some(reader) = self.reader.as_ref().filter(|_| self.matcher.is_none()) {
            if !reader.thinks()
                && let Some(constraint) = self.pending.take()
            {
                self.matcher = generator.constrain(&constraint).ok();
            } else if let Some(call) = self.call.as_ref().filter(|_| reader.at_call()) {
                // Schemas that cannot be compiled leave the model to itself.
                self.matcher = generator.constrain(call).ok();
                self.in_call = self.matcher.is_some();
            }
        }
        Digested { delta, finish, shown }
    }
}
