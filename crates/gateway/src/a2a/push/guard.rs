//! Where webhooks may be: not inside this machine's own networks, unless that is allowed. Looked at when a connection is
//! made, on the addresses it is made to, so that a name that changes its mind is of no use.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// Which addresses may be called.
#[derive(Debug)]
pub(super) struct Guard {
    /// Networks that may be called although they are not public, without TLS too.
    pub allowed: Vec<IpNet>,
}

impl Guard {
    fn is_listed(&self, ip: IpAddr) -> bool {
        self.allowed.iter().any(|net| net.contains(&ip.to_canonical()))
    }

    /// Whether `ip` may be called; without TLS only what is listed may.
    fn permits(&self, ip: IpAddr, tls: bool) -> bool {
        self.is_listed(ip) || (tls && is_public(ip))
    }

    /// Says why `url` can be no webhook, as far as it can be known without asking the network.
    pub fn check(&self, url: &Url) -> Result<(), String> {
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            other => return Err(format!("has scheme `{other}`; https is wanted")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("carries a password; say it in `authentication`".into());
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("names no host")?;
        // However it was written, an address is in its usual form here.
        let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        match literal {
            Some(ip) if !self.permits(ip, tls) => Err(refusal(tls)),
            None if !tls && self.allowed.is_empty() => Err(refusal(false)),
            _ => Ok(()),
        }
    }
}

fn refusal(tls: bool) -> String {
    match tls {
        true => "is no public address; the head's --push-allow names others".into(),
        false => "is not https, which only networks of the head's --push-allow may be called without".into(),
    }
}

/// Finds addresses of names, and keeps those to itself that may not be called.
pub(super) struct Resolver {
    pub guard: Arc<Guard>,
    pub tls: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, tls) = (self.guard.clone(), self.tls);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let good: Vec<_> = found.into_iter().filter(|address| guard.permits(address.ip(), tls)).collect();
            if good.is_empty() {
                return Err(format!("`{}` {}", name.as_str(), refusal(tls)).into());
            }
            Ok(Box::new(good.into_iter()) as Addrs)
        })
    }
}

/// An address anybody on the internet could have: none of the special ranges of IANA's registries.
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_public_4(ip),
        IpAddr::V6(ip) => is_public_6(ip),
    }
}

fn is_public_4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        // Shared by carriers, protocol assignments, benchmarks, reserved with broadcast.
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && b & 0xfe == 18)
        || a >= 240)
}

fn is_public_6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    // What carries an IPv4 address is as public as that: NAT64, 6to4.
    let inner = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    if s[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        return is_public_4(inner(s[6], s[7]));
    }
    if s[0] == 0x2002 {
        return is_public_4(inner(s[1], s[2]));
    }
    // Of 2000::/3, what is given to everybody; documentation, Teredo and other protocol assignments are not.
    let global = s[0] & 0xe000 == 0x2000;
    let special = (s[0] == 0x2001 && (s[1] < 0x200 || s[1] == 0xdb8)) || (s[0] == 0x3fff && s[1] < 0x1000);
    global && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        let no = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "2002:7f00:1::",
            "64:ff9b::a9fe:a9fe",
            "2001:db8::1",
            "ff02::1",
            "::127.0.0.1",
        ];
        for ip in no {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn what_is_listed_may_be_called_and_nothing_else_inside() {
        let none = Guard { allowed: vec![] };
        let some = Guard { allowed: vec!["127.0.0.0/8".parse().unwrap()] };
        let check = |guard: &Guard, url: &str| guard.check(&url.parse().unwrap()).is_ok();
        for url in [
            "http://127.0.0.1:8/x",
            "https://127.0.0.1/x",
            "https://[::1]/",
            "http://example.com/",
            "ftp://example.com/",
        ] {
            assert!(!check(&none, url), "{url}");
        }
        assert!(check(&none, "https://example.com/x") && check(&some, "http://127.0.0.1:8/x"));
        // Written otherwise it is the same address.
        assert!(!check(&none, "https://2130706433/") && !check(&none, "https://0x7f.1/"));
        assert!(!check(&some, "https://10.0.0.1/") && !check(&none, "https://me:secret@example.com/"));
    }
}
