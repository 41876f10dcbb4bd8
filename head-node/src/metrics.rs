//! `/metrics` in Prometheus' text format: a picture of the moment, made when it is asked for.

use std::{collections::BTreeMap, fmt::Write as _};

use covey_domain::status::{ClusterStatus, EngineStats, LATENCY_BOUNDS_MS, Latency, NodeStatus};

/// What the relay counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RelayCounts {
    /// Calls that came through the head since it started.
    pub calls: u64,
    /// Of them, under way now.
    pub open: usize,
    /// Streams of callers.
    pub callers: usize,
    /// Actors whose places callers watch.
    pub watched: usize,
}

/// The whole page.
pub(crate) fn render(status: &ClusterStatus, relay: RelayCounts) -> String {
    let mut page = Page(String::new());
    page.one("covey_uptime_seconds", "gauge", "Time since the head started.", status.uptime_s as f64);
    let count = |states: &mut dyn Iterator<Item = &str>| {
        let mut counts: BTreeMap<String, f64> = BTreeMap::new();
        for state in states {
            *counts.entry(format!("state=\"{state}\"")).or_default() += 1.0;
        }
        counts
    };
    let nodes = count(&mut status.nodes.iter().map(|n| n.state.as_str()));
    page.many("covey_nodes", "gauge", "Workers by state.", nodes);
    let actors = status.actor_counts.iter().map(|(state, n)| (format!("state=\"{state}\""), *n as f64)).collect();
    page.many("covey_actors", "gauge", "Actors by state.", actors);
    let tasks = status.tasks.iter().map(|(state, n)| (format!("state=\"{state}\""), *n as f64)).collect();
    page.many(
        "covey_tasks",
        "gauge",
        "Tasks by state: those that go on, and those that have ended since the head started or were in its store then.",
        tasks,
    );
    page.one(
        "covey_pending",
        "gauge",
        "Actors, gangs and agents' tasks that wait for a place.",
        status.pending.len() as f64,
    );
    let live = || status.nodes.iter().filter(|n| n.state == "live");
    let amounts = |of: &dyn Fn(&covey_domain::Resources) -> f64| {
        let both = |n: &covey_domain::status::NodeStatus| {
            let name = escape(&n.name);
            [
                (format!("node=\"{name}\",kind=\"total\""), of(&n.total)),
                (format!("node=\"{name}\",kind=\"free\""), of(&n.free)),
            ]
        };
        live().flat_map(both).collect::<BTreeMap<_, _>>()
    };
    page.many(
        "covey_node_cpus",
        "gauge",
        "CPUs of live workers, offered (total) and not given to actors (free).",
        amounts(&|r| r.cpu_milli as f64 / 1000.0),
    );
    page.many(
        "covey_node_memory_bytes",
        "gauge",
        "Memory of live workers in bytes, offered (total) and not given to actors (free).",
        amounts(&|r| r.memory_bytes as f64),
    );
    let done = live().map(|n| (format!("node=\"{}\"", escape(&n.name)), n.tasks_done as f64)).collect();
    page.many("covey_node_tasks_done_total", "counter", "Tasks a worker has finished since it joined.", done);
    let models = live().flat_map(|n| {
        let name = escape(&n.name);
        n.models
            .iter()
            .map(move |m| (format!("node=\"{name}\",model=\"{}\"", escape(&m.name)), f64::from(u8::from(m.loaded))))
    });
    page.many("covey_model_loaded", "gauge", "1 when a model is in a worker's memory.", models.collect());
    engines(&mut page, &status.nodes);
    page.one(
        "covey_relayed_calls_total",
        "counter",
        "Calls that went through the head since it started.",
        relay.calls as f64,
    );
    page.one("covey_relayed_calls_open", "gauge", "Calls that go through the head now.", relay.open as f64);
    page.one("covey_callers", "gauge", "Streams of drivers and workers.", relay.callers as f64);
    page.one("covey_watched_actors", "gauge", "Actors whose places callers watch.", relay.watched as f64);
    page.0
}

/// One of an engine's numbers.
type Number<'a> = &'a dyn Fn(&EngineStats) -> u64;

/// What the engines of all models in memory do.
fn engines(page: &mut Page, nodes: &[NodeStatus]) {
    let mut all: Vec<(String, &EngineStats)> = Vec::new();
    let mut memory = BTreeMap::new();
    for node in nodes.iter().filter(|n| n.state == "live") {
        for model in &node.models {
            let labels = format!("node=\"{}\",model=\"{}\"", escape(&node.name), escape(&model.name));
            if let Some(engine) = &model.engine {
                memory.insert(labels.clone(), model.memory as f64);
                all.push((labels, engine));
            }
        }
    }
    let of = |value: Number<'_>| {
        all.iter().map(|(labels, stats)| (labels.clone(), value(stats) as f64)).collect::<BTreeMap<_, _>>()
    };
    let kinds = |kinds: &[(&str, Number<'_>)]| {
        let each = |(kind, value): &(&str, Number<'_>)| {
            all.iter().map(|(l, s)| (format!("{l},kind=\"{kind}\""), value(s) as f64)).collect::<Vec<_>>()
        };
        kinds.iter().flat_map(each).collect::<BTreeMap<_, _>>()
    };
    page.many("covey_model_memory_bytes", "gauge", "Bytes of a model in memory: weights, keys and values.", memory);
    let tokens = kinds(&[
        ("prompt", &|s| s.prompt_tokens),
        ("made", &|s| s.made_tokens),
        ("guessed", &|s| s.guessed_tokens),
        ("guessed_right", &|s| s.right_guesses),
    ]);
    page.many(
        "covey_model_tokens_total",
        "counter",
        "Tokens of prompts computed (prompt), of answers (made), guessed ahead by a draft model (guessed), and of these right (guessed_right).",
        tokens,
    );
    let prefix = kinds(&[("asked", &|s| s.asked_tokens), ("found", &|s| s.found_tokens)]);
    page.many(
        "covey_model_prefix_tokens_total",
        "counter",
        "Tokens of prompts looked up in the prefix cache (asked), and found there (found).",
        prefix,
    );
    page.many(
        "covey_model_steps_total",
        "counter",
        "Steps that an engine has computed since the model was loaded.",
        of(&|s| s.steps),
    );
    page.many("covey_model_batch", "gauge", "Sequences in the last step.", of(&|s| s.batch));
    let sequences = kinds(&[("waiting", &|s| s.waiting), ("running", &|s| s.running)]);
    page.many(
        "covey_model_sequences",
        "gauge",
        "Sequences that wait (waiting), and that hold blocks (running).",
        sequences,
    );
    let blocks = kinds(&[
        ("free", &|s| s.kv_free),
        ("cached", &|s| s.kv_cached),
        ("held", &|s| s.kv_blocks.saturating_sub(s.kv_free + s.kv_cached)),
    ]);
    page.many(
        "covey_model_kv_blocks",
        "gauge",
        "Blocks of 16 positions for keys and values: free, kept for prompts to come (cached), in use (held).",
        blocks,
    );
    page.many(
        "covey_model_preemptions_total",
        "counter",
        "Times that a sequence gave its blocks back.",
        of(&|s| s.preemptions),
    );
    page.many(
        "covey_model_evictions_total",
        "counter",
        "Blocks of the prefix cache given up for others.",
        of(&|s| s.evictions),
    );
    let first = |s: &EngineStats| s.first_token;
    page.latency(
        "covey_model_first_token_seconds",
        "Seconds from a request's arrival to its first token.",
        &all,
        first,
    );
    let between = |s: &EngineStats| s.between_tokens;
    page.latency("covey_model_between_tokens_seconds", "Seconds between two tokens of an answer.", &all, between);
}

struct Page(String);

impl Page {
    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.many(name, kind, help, BTreeMap::from([(String::new(), value)]));
    }

    fn latency(
        &mut self,
        name: &str,
        help: &str,
        all: &[(String, &EngineStats)],
        of: impl Fn(&EngineStats) -> Latency,
    ) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (labels, stats) in all {
            let latency = of(stats);
            let mut count = 0;
            for (bound, n) in LATENCY_BOUNDS_MS.iter().zip(latency.buckets) {
                count += n;
                let _ = writeln!(self.0, "{name}_bucket{{{labels},le=\"{}\"}} {count}", *bound as f64 / 1e3);
            }
            let count = latency.count();
            let _ = writeln!(self.0, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(self.0, "{name}_sum{{{labels}}} {}", latency.sum_us as f64 / 1e6);
            let _ = writeln!(self.0, "{name}_count{{{labels}}} {count}");
        }
    }

    fn many(&mut self, name: &str, kind: &str, help: &str, values: BTreeMap<String, f64>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_prometheus_reads() {
        let mut status = ClusterStatus { uptime_s: 7, ..ClusterStatus::default() };
        status.tasks.insert("working".into(), 3);
        let page = render(&status, RelayCounts { calls: 5, ..RelayCounts::default() });
        assert!(page.contains("# TYPE covey_uptime_seconds gauge\ncovey_uptime_seconds 7\n"));
        assert!(page.contains("covey_tasks{state=\"working\"} 3\n"));
        assert!(page.contains("covey_relayed_calls_total 5\n"));
        assert_eq!(escape("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }
}
