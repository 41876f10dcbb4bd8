//! Files of sound as what Whisper hears: 16,000 samples a second, and their spectrum on the mel scale.

use std::io::Cursor;

use covey_domain::caps;
use realfft::RealFftPlanner;
use rubato::{Fft, FixedSync, Resampler as _, audioadapter_buffers::direct::InterleavedSlice};
use symphonia::core::{
    errors::Error as Failed,
    formats::{TrackType, probe::Hint},
    io::MediaSourceStream,
};

use crate::Error;

/// Samples a second.
pub(super) const RATE: usize = 16_000;

/// Samples of a window: 30 seconds.
pub(super) const WINDOW: usize = 30 * RATE;

/// Samples a second that sound may have, at least.
const RATE_MIN: u32 = 4_000;
/// Channels of a sound.
const CHANNELS_MAX: usize = 32;
/// Samples that are resampled at once.
const BLOCK: usize = 1024;

/// Samples of a Fourier transform, and from one to the next.
const N_FFT: usize = 400;
const HOP: usize = 160;

/// Frames of a window.
pub(super) const FRAMES: usize = WINDOW / HOP;

/// WAV, MP3, FLAC, Ogg Vorbis, M4A or MP4 as samples of one channel at [`RATE`].
pub(super) fn samples(file: &[u8]) -> Result<Vec<f32>, Error> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| {
        Error::Request(format!("failed to read the sound ({what}: {e}); WAV, MP3, FLAC, Ogg Vorbis and M4A are served"))
    };
    let source = MediaSourceStream::new(Box::new(Cursor::new(file.to_vec())), Default::default());
    let mut format = symphonia::default::get_probe()
        .probe(&Hint::new(), source, Default::default(), Default::default())
        .map_err(|e| wrong("format", &e))?;
    let track = format.default_track(TrackType::Audio).ok_or_else(|| wrong("format", &"no sound in it"))?;
    let params = track.codec_params.as_ref().and_then(|p| p.audio()).ok_or_else(|| wrong("codec", &"unknown"))?;
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(params, &Default::default())
        .map_err(|e| wrong("codec", &e))?;
    let (track, mut mixed, mut mono) = (track.id, Vec::new(), Vec::new());
    let mut heard: Option<Resampled> = None;
    while let Some(packet) = format.next_packet().map_err(|e| wrong("packet", &e))? {
        if packet.track_id != track {
            continue;
        }
        let buffer = match decoder.decode(&packet) {
            Ok(buffer) => buffer,
            // A broken packet is silence to a player too.
            Err(Failed::DecodeError(_)) => continue,
            Err(e) => return Err(wrong("packet", &e)),
        };
        let (channels, rate) = (buffer.spec().channels().count().max(1), buffer.spec().rate());
        if channels > CHANNELS_MAX {
            return Err(Error::Request(format!("the sound has {channels} channels; {CHANNELS_MAX} are served")));
        }
        let heard = match &mut heard {
            Some(heard) if heard.rate == rate => heard,
            Some(_) => return Err(Error::Request("the sound changes its rate".into())),
            None => heard.insert(Resampled::new(rate)?),
        };
        mixed.resize(buffer.samples_interleaved(), 0f32);
        buffer.copy_to_slice_interleaved(&mut mixed);
        mono.clear();
        mono.extend(mixed.chunks(channels).map(|all| all.iter().sum::<f32>() / channels as f32));
        // As it comes: a file of two megabytes can hold a day at a high rate.
        heard.push(&mono)?;
    }
    let samples = heard.map(Resampled::finish).transpose()?.unwrap_or_default();
    if samples.is_empty() {
        return Err(Error::Request("there is no sound in the file".into()));
    }
    Ok(samples)
}

/// Sound at [`RATE`], made while it is decoded: what is held is what is given, and one block.
struct Resampled {
    rate: u32,
    /// `None` where nothing is to be done.
    resampler: Option<Fft<f32>>,
    /// Waits for a whole block.
    rest: Vec<f32>,
    out: Vec<f32>,
    /// Samples that came.
    taken: u64,
}

impl Resampled {
    fn new(rate: u32) -> Result<Self, Error> {
        if !(RATE_MIN..=caps::SOUND_RATE_MAX).contains(&rate) {
            let most = caps::SOUND_RATE_MAX;
            return Err(Error::Request(format!(
                "the sound has {rate} samples a second; {RATE_MIN} to {most} are served"
            )));
        }
        let resampler = (rate as usize != RATE).then(|| Fft::new(rate as usize, RATE, BLOCK, 1, FixedSync::Both));
        let resampler = resampler.transpose().map_err(|e| failed(&e))?;
        Ok(Self { rate, resampler, rest: Vec::new(), out: Vec::new(), taken: 0 })
    }

    fn push(&mut self, samples: &[f32]) -> Result<(), Error> {
        self.taken += samples.len() as u64;
        if self.taken > caps::SOUND_SECONDS_MAX * u64::from(self.rate) {
            return Err(Error::Request(format!("the sound is longer than {} seconds", caps::SOUND_SECONDS_MAX)));
        }
        if self.resampler.is_none() {
            self.out.extend_from_slice(samples);
            return Ok(());
        }
        self.rest.extend_from_slice(samples);
        self.blocks()
    }

    /// Resamples the whole blocks that are there.
    fn blocks(&mut self) -> Result<(), Error> {
        let Some(resampler) = &mut self.resampler else { return Ok(()) };
        let mut at = 0;
        loop {
            let (take, give) = (resampler.input_frames_next(), resampler.output_frames_next());
            if self.rest.len() - at < take {
                break;
            }
            let begin = self.out.len();
            self.out.resize(begin + give, 0.0);
            let input = InterleavedSlice::new(&self.rest[at..at + take], 1, take).map_err(|e| failed(&e))?;
            let mut output = InterleavedSlice::new_mut(&mut self.out[begin..], 1, give).map_err(|e| failed(&e))?;
            let (taken, given) = resampler.process_into_buffer(&input, &mut output, None).map_err(|e| failed(&e))?;
            self.out.truncate(begin + given);
            at += taken;
        }
        self.rest.drain(..at);
        Ok(())
    }

    /// All of it, as long as what came.
    fn finish(mut self) -> Result<Vec<f32>, Error> {
        let Some(resampler) = &self.resampler else { return Ok(self.out) };
        let (delay, block) = (resampler.output_delay(), resampler.input_frames_max());
        let wanted = (resampler.resample_ratio() * self.taken as f64).ceil() as usize;
        // Silence pushes out what is still inside.
        while self.out.len() < delay + wanted {
            self.rest.resize(self.rest.len() + block, 0.0);
            self.blocks()?;
        }
        self.out.drain(..delay);
        self.out.truncate(wanted);
        Ok(self.out)
    }
}

fn failed(e: &dyn std::fmt::Display) -> Error {
    Error::Request(format!("failed to bring the sound to {RATE} samples a second: {e}"))
}

/// The mel scale of Slaney's Auditory Toolbox: linear up to 1,000 Hz, logarithmic above.
fn mel(hz: f64) -> f64 {
    if hz < 1000.0 { hz * 3.0 / 200.0 } else { 15.0 + (hz / 1000.0).ln() * 27.0 / 6.4f64.ln() }
}

fn hz(mel: f64) -> f64 {
    if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() }
}

/// Triangles over the bins of a transform, `[mels, N_FFT / 2 + 1]`, each of the same area.
pub(super) fn filters(mels: usize) -> Vec<f32> {
    let bins = N_FFT / 2 + 1;
    let top = mel(RATE as f64 / 2.0);
    let edges: Vec<f64> = (0..mels + 2).map(|i| hz(top * i as f64 / (mels + 1) as f64)).collect();
    let mut out = Vec::with_capacity(mels * bins);
    for edge in edges.windows(3) {
        for bin in 0..bins {
            let f = bin as f64 * RATE as f64 / N_FFT as f64;
            let (up, down) = ((f - edge[0]) / (edge[1] - edge[0]), (edge[2] - f) / (edge[2] - edge[1]));
            out.push((up.min(down).max(0.0) * 2.0 / (edge[2] - edge[0])) as f32);
        }
    }
    out
}

/// The logarithmic mel spectrum of a window, `[mels, FRAMES]`; what is missing at its end is silence.
pub(super) fn spectrum(samples: &[f32], filters: &[f32]) -> Vec<f32> {
    let bins = N_FFT / 2 + 1;
    let mels = filters.len() / bins;
    let mut window = vec![0f32; WINDOW + N_FFT];
    let count = samples.len().min(WINDOW);
    window[N_FFT / 2..][..count].copy_from_slice(&samples[..count]);
    // Both ends are mirrored.
    for i in 0..N_FFT / 2 {
        window[i] = window[N_FFT - i];
        window[WINDOW + N_FFT / 2 + i] = window[WINDOW + N_FFT / 2 - 2 - i];
    }
    let hann: Vec<f32> =
        (0..N_FFT).map(|i| 0.5 - 0.5 * (std::f32::consts::TAU * i as f32 / N_FFT as f32).cos()).collect();
    let transform = RealFftPlanner::<f32>::new().plan_fft_forward(N_FFT);
    let (mut input, mut output) = (transform.make_input_vec(), transform.make_output_vec());
    let mut mel = vec![0f32; mels * FRAMES];
    for frame in 0..FRAMES {
        let at = &window[frame * HOP..][..N_FFT];
        input.iter_mut().zip(at).zip(&hann).for_each(|((x, s), h)| *x = s * h);
        if transform.process(&mut input, &mut output).is_err() {
            // Only wrong lengths fail, and these are its own.
            continue;
        }
        let power: Vec<f32> = output.iter().map(|c| c.norm_sqr()).collect();
        for (m, filter) in filters.chunks(bins).enumerate() {
            let sum: f32 = filter.iter().zip(&power).map(|(f, p)| f * p).sum();
            mel[m * FRAMES + frame] = sum.max(1e-10).log10();
        }
    }
    let floor = mel.iter().copied().fold(f32::MIN, f32::max) - 8.0;
    mel.iter_mut().for_each(|x| *x = (x.max(floor) + 4.0) / 4.0);
    mel
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WAV of one channel: 16 bits a sample.
    fn wav(rate: u32, samples: &[i16]) -> Vec<u8> {
        let bytes = samples.len() as u32 * 2;
        let mut out = Vec::new();
        let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
        put(b"RIFF");
        put(&(36 + bytes).to_le_bytes());
        put(b"WAVEfmt ");
        put(&16u32.to_le_bytes());
        put(&1u16.to_le_bytes());
        put(&1u16.to_le_bytes());
        put(&rate.to_le_bytes());
        put(&(rate * 2).to_le_bytes());
        put(&2u16.to_le_bytes());
        put(&16u16.to_le_bytes());
        put(b"data");
        put(&bytes.to_le_bytes());
        samples.iter().for_each(|s| put(&s.to_le_bytes()));
        out
    }

    #[test]
    fn a_tone_stays_itself_at_another_rate() {
        for rate in [8_000, 16_000, 44_100, 48_000] {
            let tone = |n: usize, rate: u32| (n as f32 * 440.0 * std::f32::consts::TAU / rate as f32).sin() * 0.5;
            let file: Vec<i16> = (0..rate as usize).map(|n| (tone(n, rate) * 32_767.0) as i16).collect();
            let got = samples(&wav(rate, &file)).unwrap();
            assert_eq!(got.len(), RATE, "{rate}");
            let off = got.iter().enumerate().skip(2_000).take(10_000).map(|(n, x)| (x - tone(n, RATE as u32)).abs());
            let off = off.fold(0f32, f32::max);
            assert!(off < 0.02, "at {rate} it is off by {off}");
        }
    }

    #[test]
    fn rates_and_lengths_have_bounds() {
        for rate in [1, RATE_MIN - 1, caps::SOUND_RATE_MAX + 1] {
            assert!(samples(&wav(rate, &[0; 100])).is_err(), "{rate}");
        }
        let mut heard = Resampled::new(caps::SOUND_RATE_MAX).unwrap();
        heard.taken = caps::SOUND_SECONDS_MAX * u64::from(caps::SOUND_RATE_MAX);
        assert!(heard.push(&[0.0]).is_err(), "longer than is served");
        // What is held of a second at the highest rate is a second at ours, and a block.
        let mut heard = Resampled::new(caps::SOUND_RATE_MAX).unwrap();
        let packet = vec![0.0; caps::SOUND_RATE_MAX as usize / 100];
        for _ in 0..100 {
            heard.push(&packet).unwrap();
        }
        assert!(heard.out.len() <= RATE + BLOCK && heard.rest.len() < packet.len(), "{}", heard.rest.len());
    }
}
