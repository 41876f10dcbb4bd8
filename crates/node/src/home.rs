//! Where Covey keeps its files (`$COVEY_HOME`, else `~/.covey`), and how this machine is reached.

use std::{
    fs, io,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// The root of all files of this user.
pub fn root() -> PathBuf {
    if let Some(home) = std::env::var_os("COVEY_HOME").filter(|h| !h.is_empty()) {
        return PathBuf::from(home);
    }
    std::env::home_dir().unwrap_or_else(|| PathBuf::from(".")).join(".covey")
}

/// Makes a folder that only its owner can read.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes a folder that only its owner can read and that nobody has made before: in places where others can make some too.
pub fn own_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// Writes a file that only its owner can read, whole or not at all.
pub fn write_private(path: &Path, body: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        private_dir(parent)?;
    }
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    let written = file.write_all(body).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&fresh, path));
    // On a full disk a part of it would stay.
    written.inspect_err(|_| drop(fs::remove_file(&fresh)))?;
    // The new name outlives the machine's power only when its folder is on disk, too.
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => fs::File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

/// The address by which others reach who listens on `bound`: itself, or for "all addresses" the one that this machine
/// uses towards the network; `None` where it has no route to one.
pub fn reachable(bound: IpAddr) -> Option<IpAddr> {
    if !bound.is_unspecified() {
        return Some(bound);
    }
    // No packet is sent: connecting a UDP socket only asks the routing table. 192.0.2.0/24 is for documentation.
    let outward = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    outward.as_ref().ok().map(SocketAddr::ip).filter(|ip| !ip.is_loopback())
}

/// `host:port`, with brackets where the host is an IPv6 address.
pub fn with_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
