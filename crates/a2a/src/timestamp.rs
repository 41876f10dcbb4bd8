//! `google.protobuf.Timestamp`, as JSON in UTC with `Z` and milliseconds, which the specification asks for.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A point in time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, ::prost::Message)]
pub struct Timestamp {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds behind them.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// From milliseconds since 1970.
    pub fn from_ms(ms: u64) -> Self {
        Self { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
    }

    /// Milliseconds since 1970; 0 before that.
    pub fn ms(self) -> u64 {
        u64::try_from(self.seconds).map_or(0, |s| s * 1000 + self.nanos.max(0) as u64 / 1_000_000)
    }
}

/// `YYYY-MM-DDTHH:MM:SS.mmmZ`.
impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp(self.seconds).map_err(|_| std::fmt::Error)?;
        let (h, m, s) = at.to_hms();
        let (year, month, day) = at.to_calendar_date();
        let ms = self.nanos / 1_000_000;
        write!(f, "{year:04}-{:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z", u8::from(month))
    }
}

impl std::str::FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|e| format!("`{text}` is no timestamp: {e}"))?;
        Ok(Self { seconds: at.unix_timestamp(), nanos: at.nanosecond() as i32 })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc_with_milliseconds() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (1_795_219_199_999, "2026-11-20T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::from_ms(ms).to_string(), text);
            assert_eq!(text.parse::<Timestamp>().unwrap().ms(), ms);
        }
        assert_eq!("2026-11-20T23:59:59+02:00".parse::<Timestamp>().unwrap().ms(), 1_795_211_999_000);
        assert!("yesterday".parse::<Timestamp>().is_err());
    }
}
