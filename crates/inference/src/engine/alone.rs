//! Models that answer one request after the other.

use std::panic::AssertUnwindSafe;

use base64::Engine as _;
use covey_domain::infer::{Delta, Finish, InferEvent, Made, Usage, Work};
use tokio::sync::mpsc;

use super::{Asked, DEFAULT_NEW_TOKENS, Request};
use crate::{Error, Heard, Hearing, Listener, Seer, embed::Embedder, sampler::Sampler, text};

/// Makes vectors and scores.
pub(super) fn embed(embedder: &Embedder, mut requests: mpsc::Receiver<Request>) {
    while let Some(Request { asked: Asked::Work(work), events, .. }) = requests.blocking_recv() {
        let made = match &*work {
            Work::Embed { texts } => {
                embedder.embed(texts, || !events.is_closed()).map(|m| m.map(|(v, n)| (embedder.dims(), v, n)))
            }
            Work::Rank { query, texts } => {
                embedder.rank(query, texts, || !events.is_closed()).map(|m| m.map(|(v, n)| (1, v, n)))
            }
            _ => Err(Error::Request("this model makes vectors, not text".into())),
        };
        match made {
            Ok(None) => {}
            Ok(Some((dims, data, input))) => {
                let _ = events.blocking_send(Ok(InferEvent::Vectors { dims, data }));
                let done = InferEvent::Done { finish: Finish::Stop, usage: Usage { input, output: 0 } };
                let _ = events.blocking_send(Ok(done));
            }
            Err(error) => {
                let _ = events.blocking_send(Err(error));
            }
        }
    }
}

/// Makes text of speech.
pub(super) fn hear(mut listener: Listener, mut requests: mpsc::Receiver<Request>) {
    while let Some(Request { asked: Asked::Work(work), events, .. }) = requests.blocking_recv() {
        let Work::Transcribe(speech) = *work else {
            let _ =
                events.blocking_send(Err(Error::Request("this model makes text of speech and nothing else".into())));
            continue;
        };
        let Ok(sound) = base64::engine::general_purpose::STANDARD.decode(&speech.sound) else {
            let _ = events.blocking_send(Err(Error::Request("the sound is not base64".into())));
            continue;
        };
        let asked = Hearing {
            language: speech.language,
            translate: speech.translate,
            prompt: speech.prompt,
            temperature: speech.temperature,
        };
        let mut usage = Usage::default();
        let mut tell = |told: Result<Heard, (String, f32)>| {
            let event = match told {
                Err((language, seconds)) => {
                    // Whisper sees fifty states a second.
                    usage.input = (seconds * 50.0) as u64;
                    InferEvent::Heard { language, seconds }
                }
                Ok(Heard { seconds, text, tokens }) => {
                    usage.output += tokens;
                    InferEvent::Delta(Delta { text, seconds: Some(seconds), ..Delta::default() })
                }
            };
            events.blocking_send(Ok(event)).is_ok()
        };
        let heard = std::panic::catch_unwind(AssertUnwindSafe(|| listener.hear(&sound, &asked, &mut tell)));
        let last = match heard.unwrap_or(Err(Error::Broken)) {
            Ok(()) => Ok(InferEvent::Done { finish: Finish::Stop, usage }),
            Err(error) => Err(error),
        };
        let _ = events.blocking_send(last);
    }
}

/// Makes text of pictures and questions.
pub(super) fn see(mut seer: Seer, mut requests: mpsc::Receiver<Request>) {
    while let Some(Request { asked: Asked::Work(work), made, events, .. }) = requests.blocking_recv() {
        let seen = std::panic::catch_unwind(AssertUnwindSafe(|| look(&mut seer, *work, &made, &events)));
        if let Err(error) = seen.unwrap_or(Err(Error::Broken)) {
            let _ = events.blocking_send(Err(error));
        }
    }
}

/// Answers one question about pictures: those of the last message of a user, whose text is the question.
fn look(
    seer: &mut Seer,
    work: Work,
    made: &[Made],
    events: &mpsc::Sender<Result<InferEvent, Error>>,
) -> Result<(), Error> {
    let Work::Chat(chat) = work else {
        return Err(Error::Request("this model answers questions about pictures, asked as a chat".into()));
    };
    if chat.sampling.constraint.is_some() || chat.sampling.n.is_some_and(|n| n > 1) || !chat.tools.is_empty() {
        return Err(Error::Request("this model takes no constraints and tools, and gives one answer".into()));
    }
    let asked = chat.messages.iter().rev().find(|m| m.role == "user");
    let asked = asked.ok_or_else(|| Error::Request("nobody asks anything".into()))?;
    let pictures = asked.images.iter().map(|picture| {
        let file = base64::engine::general_purpose::STANDARD.decode(picture);
        seer.picture(&file.map_err(|_| Error::Request("a picture is not base64".into()))?)
    });
    let pictures = pictures.collect::<Result<Vec<_>, _>>()?;
    let question = seer.question(&asked.content)?;
    let (mut logits, places) = seer.begin(&pictures, &question)?;
    let mut sampler = Sampler::new(&chat.sampling, &question);
    let mut detokenizer = text::Detokenizer::default();
    let mut stops = text::Stops::new(&chat.sampling.stop);
    let room = chat.sampling.max_tokens.map_or(DEFAULT_NEW_TOKENS, |n| n as usize).min(seer.context - places);
    let before = made.first().map_or(&[][..], |m| &m.tokens);
    let mut usage = Usage { input: places as u64, output: 0 };
    let mut finish = Finish::Length;
    for at in 0..room {
        if events.is_closed() {
            return Ok(());
        }
        let token = match before.get(at) {
            Some(token) => *token,
            None => sampler.draw(&mut logits, places + at, None).token,
        };
        sampler.saw(token);
        usage.output += 1;
        if seer.end.contains(&token) {
            finish = Finish::Stop;
            break;
        }
        let (text, stopped) = stops.push(&detokenizer.push(&seer.tokenizer, token));
        if at >= before.len() && !text.is_empty() {
            let delta = Delta { text, tokens: vec![token], ..Delta::default() };
            let _ = events.blocking_send(Ok(InferEvent::Delta(delta)));
        }
        if stopped {
            finish = Finish::Stop;
            break;
        }
        if at + 1 < room {
            logits = seer.next(token, places + at)?;
        }
    }
    let rest = stops.flush();
    if !rest.is_empty() {
        let _ = events.blocking_send(Ok(InferEvent::text(rest)));
    }
    let _ = events.blocking_send(Ok(InferEvent::Done { finish, usage }));
    Ok(())
}
