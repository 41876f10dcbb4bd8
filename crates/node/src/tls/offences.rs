//! Addresses whose connections break the protocol, one after the other: each such connection costs a handshake and what HTTP keeps of
//! it, so an address that goes on has its next connections closed as they are accepted, for a time that it makes itself.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use covey_domain::caps;
use parking_lot::Mutex;
use tokio::time::Instant;

/// An address is barred while it has so many offences that are not forgiven.
const BARRED_AT: u32 = 20;
/// One offence is forgiven in so long.
const FORGIVEN_AFTER: Duration = Duration::from_millis(500);

/// Who is counted as one: an address, or a network of IPv6 that one subscriber has. `None`: a proxy on this machine, behind which
/// everybody may be.
pub(super) fn source_of(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        // Others of `127.0.0.0/8` are used by nobody who is not asked to.
        IpAddr::V4(v4) => (v4 != std::net::Ipv4Addr::LOCALHOST).then_some(IpAddr::V4(v4)),
        IpAddr::V6(v6) if v6.is_loopback() => None,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Some([a, b, c, d, 0, 0, 0, 0].into())
        }
    }
}

/// When the last of an address's offences is forgiven.
#[derive(Debug, Default)]
pub(super) struct Offences(Mutex<HashMap<IpAddr, Instant>>);

impl Offences {
    /// A connection of this source broke the protocol.
    pub fn count(&self, source: IpAddr, now: Instant) {
        let mut known = self.0.lock();
        if known.len() >= caps::OFFENDERS_MAX && !known.contains_key(&source) {
            known.retain(|_, until| *until > now);
            if known.len() >= caps::OFFENDERS_MAX {
                return;
            }
        }
        let until = known.entry(source).or_insert(now);
        // No longer than it takes to forgive what bars it: what was on its way then is not counted on.
        *until = ((*until).max(now) + FORGIVEN_AFTER).min(now + FORGIVEN_AFTER * BARRED_AT);
    }

    /// Whether its connections are closed now.
    pub fn bars(&self, source: IpAddr, now: Instant) -> bool {
        let known = self.0.lock();
        known.get(&source).is_some_and(|until| *until > now + FORGIVEN_AFTER * (BARRED_AT - 1))
    }
}

/// Whether a connection ended because of what its client sent: not by a cut, a timeout or the client's own word.
pub(super) fn is_violation(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_library();
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_on_is_barred_and_forgiven() {
        let (one, other) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let (offences, began) = (Offences::default(), Instant::now());
        for n in 0..BARRED_AT {
            assert!(!offences.bars(one, began), "{n}");
            offences.count(one, began);
        }
        assert!(offences.bars(one, began) && !offences.bars(other, began));
        // Many more at once bar it for no longer.
        (0..1_000).for_each(|_| offences.count(one, began));
        assert!(!offences.bars(one, began + FORGIVEN_AFTER));
        offences.count(one, began + FORGIVEN_AFTER);
        assert!(offences.bars(one, began + FORGIVEN_AFTER), "one more, and it is barred again");
        // Who offends now and then never is.
        let rare = (0..1_000).any(|n| {
            let now = began + FORGIVEN_AFTER * n;
            offences.count(other, now);
            offences.bars(other, now)
        });
        assert!(!rare);
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let (offences, now) = (Offences::default(), Instant::now());
        let address = |n: usize| IpAddr::from((n as u32 + 1).to_be_bytes());
        (0..2 * caps::OFFENDERS_MAX).for_each(|n| offences.count(address(n), now));
        assert_eq!(offences.0.lock().len(), caps::OFFENDERS_MAX);
        offences.count(address(3 * caps::OFFENDERS_MAX), now + FORGIVEN_AFTER * 2);
        assert_eq!(offences.0.lock().len(), 1, "what is forgiven is forgotten");
    }

    #[test]
    fn a_source_is_an_address_or_a_network_and_a_proxy_here_is_none() {
        let of = |text: &str| source_of(text.parse().unwrap()).map(|source| source.to_string());
        assert_eq!(of("127.0.0.1"), None);
        assert_eq!(of("::1"), None);
        assert_eq!(of("::ffff:127.0.0.1"), None);
        assert_eq!(of("127.0.0.2").as_deref(), Some("127.0.0.2"));
        assert_eq!(of("::ffff:192.0.2.7").as_deref(), Some("192.0.2.7"));
        assert_eq!(of("2001:db8:1:2:3:4:5:6").as_deref(), Some("2001:db8:1:2::"));
    }
}
