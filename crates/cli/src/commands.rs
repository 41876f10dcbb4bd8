//! The commands, a file each.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod dead_letters;
pub(crate) mod doctor;
pub(crate) mod drain;
pub(crate) mod guard;
pub(crate) mod job;
pub(crate) mod key;
pub(crate) mod logs;
pub(crate) mod model;
pub(crate) mod question;
pub(crate) mod secret;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod task;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod upkeep;

fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Whole seconds from now to a time, in milliseconds since the epoch.
fn seconds_until(at_ms: u64) -> u64 {
    at_ms.saturating_sub(now_ms()) / 1000
}

/// A time like 90s, 30m, 12h or 90d, in milliseconds.
fn duration_ms(text: &str) -> Result<u64, String> {
    let wrong = || "use a number and s, m, h or d, like 12h".to_owned();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
    let unit_ms: u64 = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_ms)).filter(|ms| *ms > 0).ok_or_else(wrong)
}

/// Says so when what opens something was given on the command line.
fn warn_of_arguments(secret: &str, what: &str, instead: &str) {
    if !secret.is_empty() && std::env::args().any(|argument| argument.contains(secret)) {
        errln!("warning: {what} is in the argument list, which every user of this machine can read; {instead}");
    }
}

/// Whole seconds from a time, in milliseconds since the epoch, to now.
fn seconds_since(at_ms: u64) -> u64 {
    now_ms().saturating_sub(at_ms) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_a_number_and_a_unit() {
        assert_eq!(duration_ms("90s"), Ok(90_000));
        assert_eq!(duration_ms("2d"), Ok(172_800_000));
        for wrong in ["", "5", "h", "0m", "1y", "-1h", "99999999999999999d", "1é"] {
            assert!(duration_ms(wrong).is_err(), "{wrong}");
        }
    }
}
