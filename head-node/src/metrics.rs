//! `/metrics` in Prometheus' text format: a picture of the moment, made when it is asked for.

use std::{collections::BTreeMap, fmt::Write as _};

use covey_domain::status::ClusterStatus;

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
    page.many("covey_tasks", "gauge", "Tasks that have not ended, by state.", tasks);
    page.one("covey_pending", "gauge", "Things that wait for a place.", status.pending.len() as f64);
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
    page.many("covey_node_cpus", "gauge", "CPUs of live workers.", amounts(&|r| r.cpu_milli as f64 / 1000.0));
    page.many("covey_node_memory_bytes", "gauge", "Memory of live workers.", amounts(&|r| r.memory_bytes as f64));
    let done = live().map(|n| (format!("node=\"{}\"", escape(&n.name)), n.tasks_done as f64)).collect();
    page.many("covey_node_tasks_done_total", "counter", "Tasks a worker has finished since it joined.", done);
    let models = live().flat_map(|n| {
        let name = escape(&n.name);
        n.models
            .iter()
            .map(move |m| (format!("node=\"{name}\",model=\"{}\"", escape(&m.name)), f64::from(u8::from(m.loaded))))
    });
    page.many("covey_model_loaded", "gauge", "1 when a model is in a worker's memory.", models.collect());
    page.one("covey_relayed_calls_total", "counter", "Calls that came through the head.", relay.calls as f64);
    page.one("covey_relayed_calls_open", "gauge", "Of them, under way.", relay.open as f64);
    page.one("covey_callers", "gauge", "Streams of drivers and workers.", relay.callers as f64);
    page.one("covey_watched_actors", "gauge", "Actors whose places callers watch.", relay.watched as f64);
    page.0
}

struct Page(String);

impl Page {
    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.many(name, kind, help, BTreeMap::from([(String::new(), value)]));
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
