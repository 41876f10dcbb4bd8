//! Models on devices: loading, tokenizing, sampling, decoding. The only door to candle.
