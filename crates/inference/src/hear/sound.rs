//! Files of sound as what Whisper hears: 16,000 samples a second, and their spectrum on the mel scale.

use std::io::Cursor;

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

/// Longest sound, seconds.
const SECONDS_MAX: usize = 4 * 3600;

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
    let (track, mut rate) = (track.id, params.sample_rate.unwrap_or(RATE as u32) as usize);
    let (mut mono, mut mixed) = (Vec::new(), Vec::new());
    while let Some(packet) = format.next_packet().map_err(|e| wrong("packet", &e))? {
        if packet.track_id != track {
            continue;
        }
        match decoder.decode(&packet) {
            Ok(buffer) => {
                let channels = buffer.spec().channels().count().max(1);
                rate = buffer.spec().rate() as usize;
                mixed.resize(buffer.samples_interleaved(), 0f32);
                buffer.copy_to_slice_interleaved(&mut mixed);
                mono.extend(mixed.chunks(channels).map(|all| all.iter().sum::<f32>() / channels as f32));
            }
            // A broken packet is silence to a player too.
            Err(Failed::DecodeError(_)) => {}
            Err(e) => return Err(wrong("packet", &e)),
        }
        if mono.len() > SECONDS_MAX * rate.max(1) {
            return Err(Error::Request(format!("the sound is longer than {SECONDS_MAX} seconds")));
        }
    }
    if mono.is_empty() {
        return Err(Error::Request("there is no sound in the file".into()));
    }
    if rate == RATE {
        return Ok(mono);
    }
    let mut resampler = Fft::<f32>::new(rate, RATE, 1024, 1, FixedSync::Both).map_err(|e| wrong("rate", &e))?;
    let frames = mono.len();
    let input = InterleavedSlice::new(&mono, 1, frames).map_err(|e| wrong("rate", &e))?;
    let output = resampler.process_all(&input, frames, None).map_err(|e| wrong("rate", &e))?;
    Ok(output.take_data())
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
