//! `covey top`: the cluster as it is, again every second.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use covey_client::Client;
use covey_domain::{Error, NodeId, status::ClusterStatus};
use covey_proto::v1::UsageReply;

/// Lines and columns where the terminal does not say.
const SIZE: (usize, usize) = (24, 100);

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey top --every-s 2")]
pub(crate) struct Args {
    /// Seconds between two pictures
    #[arg(long, default_value_t = 1.0)]
    every_s: f64,
    /// Print one picture and leave
    #[arg(long)]
    once: bool,
}

pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let client = Client::connect_default().await?;
    let live = !args.once && std::io::stdout().is_terminal();
    let _screen = live.then(Screen::open);
    let mut before: HashMap<NodeId, (u64, Instant)> = HashMap::new();
    loop {
        let (status, usage) = tokio::try_join!(client.status(), client.usage())?;
        let mut rates = HashMap::new();
        for (node, usage) in &usage {
            let Ok(usage) = usage else { continue };
            let now = (usage.turns, Instant::now());
            if let Some((turns, at)) = before.insert(node.clone(), now) {
                rates.insert(node.clone(), usage.turns.saturating_sub(turns) as f64 / at.elapsed().as_secs_f64());
            }
        }
        let picture = picture(&status, &usage, &rates, client.address());
        if !live {
            outln!("{}", picture.trim_end_matches('\n'));
            return Ok(());
        }
        show(&picture);
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs_f64(args.every_s.clamp(0.1, 3600.0))) => {}
        }
    }
}

/// The other screen of the terminal, as long as it lives.
struct Screen;

impl Screen {
    fn open() -> Self {
        out!("\x1b[?1049h\x1b[?25l");
        Self
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        out!("\x1b[?25h\x1b[?1049l");
        crate::out::flush();
    }
}

/// Draws over what was there, cut to the terminal.
fn show(picture: &str) {
    let (lines, columns) = rustix::termios::tcgetwinsize(std::io::stdout())
        .map_or(SIZE, |size| (usize::from(size.ws_row).max(2), usize::from(size.ws_col).max(20)));
    let mut out = String::from("\x1b[H");
    for line in crate::out::plain(picture).lines().take(lines - 1) {
        let cut: String = line.chars().take(columns).collect();
        let _ = write!(out, "{cut}\x1b[K\r\n");
    }
    out.push_str("\x1b[J");
    out!("{out}");
    crate::out::flush();
}

fn bytes(count: u64) -> String {
    match count {
        0 => "-".to_owned(),
        n if n < 1 << 30 => format!("{:.0} MiB", n as f64 / f64::from(1 << 20)),
        n => format!("{:.1} GiB", n as f64 / f64::from(1 << 30)),
    }
}

fn counts(of: &std::collections::BTreeMap<String, u64>) -> String {
    let each: Vec<_> = of.iter().map(|(state, n)| format!("{n} {state}")).collect();
    if each.is_empty() { "none".to_owned() } else { each.join(", ") }
}

type Usage = [(NodeId, Result<UsageReply, Error>)];

fn picture(status: &ClusterStatus, usage: &Usage, rates: &HashMap<NodeId, f64>, address: &str) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "covey {} · {address} · up {} s", status.version, status.uptime_s);
    let _ = writeln!(out, "actors {} · tasks {}\n", counts(&status.actor_counts), counts(&status.tasks));
    let _ = writeln!(
        out,
        "{:<20} {:<9} {:>11} {:>21} {:>8} {:>9} {:>10} {:>6}",
        "NODE", "STATE", "CPUS FREE", "MEMORY FREE", "ACTORS", "TURNS/S", "PYTHON", "TASKS"
    );
    for node in &status.nodes {
        let used = usage.iter().find(|(id, _)| *id == node.id).map(|(_, usage)| usage);
        let python = match used {
            Some(Ok(usage)) => bytes(usage.processes.iter().map(|p| p.memory_bytes).sum()),
            Some(Err(_)) => "?".to_owned(),
            None => "-".to_owned(),
        };
        let rate = rates.get(&node.id).map_or("-".to_owned(), |rate| format!("{rate:.0}"));
        let _ = writeln!(
            out,
            "{:<20.20} {:<9} {:>11} {:>21} {:>8} {:>9} {:>10} {:>6}",
            node.name,
            node.state,
            format!("{:.1}/{:.1}", node.free.cpu_milli as f64 / 1e3, node.total.cpu_milli as f64 / 1e3),
            format!("{}/{}", bytes(node.free.memory_bytes), bytes(node.total.memory_bytes)),
            node.actors,
            rate,
            python,
            node.tasks_running,
        );
    }
    let names: HashMap<_, _> = status.actors.iter().map(|a| (a.id.as_str(), a)).collect();
    let mut processes: Vec<_> = usage.iter().filter_map(|(_, u)| u.as_ref().ok()).flat_map(|u| &u.processes).collect();
    processes.sort_by_key(|p| std::cmp::Reverse(p.memory_bytes));
    if !processes.is_empty() {
        let _ = writeln!(out, "\n{:>8} {:>10} {:>10}  ACTORS", "PID", "MEMORY", "BOUND");
    }
    for process in processes {
        let first = process.actors.first().map(String::as_str).unwrap_or_default();
        let agent = names.get(first).map_or("", |a| a.agent.as_str());
        let more = match process.actors.len() {
            0 | 1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let (memory, bound) = (bytes(process.memory_bytes), bytes(process.memory_max));
        let _ = writeln!(out, "{:>8} {memory:>10} {bound:>10}  {first} {agent}{more}", process.pid);
    }
    if !status.pending.is_empty() {
        let _ = writeln!(out, "\nWAITING");
    }
    for pending in &status.pending {
        let _ = writeln!(out, "{}: {}", pending.what, pending.why);
    }
    out
}
