//! Placement as a pure function: [`plan`] takes a [`Problem`] and gives a [`Plan`].
//!
//! Wished and tested: nothing is placed where it does not fit; nothing waits that fits somewhere; of two plans the one
//! that keeps to labels, loaded models and the strategy wins; the same problem gives the same plan.

use std::collections::{BTreeMap, BTreeSet};

use covey_domain::{ActorId, ModelName, NodeId, Resources, agent::Strategy};

/// What the scheduler may know.
#[derive(Clone, Debug, Default)]
pub struct Problem {
    /// Live nodes.
    pub nodes: Vec<NodeView>,
    /// Actors without a place, oldest first.
    pub asks: Vec<Ask>,
}

/// One live node.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// Its id.
    pub id: Option<NodeId>,
    /// What it has.
    pub total: Resources,
    /// What is left.
    pub free: Resources,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Models in its memory.
    pub loaded: BTreeSet<ModelName>,
    /// Models it could load.
    pub available: BTreeSet<ModelName>,
    /// Actors it carries.
    pub actors: usize,
    /// `major.minor` of its Python, if it has one.
    pub python: Option<String>,
}

/// One actor without a place.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Which.
    pub actor: ActorId,
    /// What it takes.
    pub resources: Resources,
    /// Labels it wants.
    pub labels: BTreeMap<String, String>,
    /// Model it thinks with.
    pub model: Option<ModelName>,
    /// Spread or pack.
    pub strategy: Strategy,
    /// `Some("")` = any Python, `Some("3.11")` = that one.
    pub python: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What goes where.
    pub placed: Vec<(ActorId, NodeId)>,
    /// What waits, and why.
    pub waiting: Vec<(ActorId, Why)>,
}

/// Why an actor waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// In words.
    pub text: String,
    /// No node now known could ever hold it, even empty.
    pub never: bool,
}

/// Places what fits, oldest first. An ask that does not fit does not hold up later ones.
pub fn plan(problem: Problem) -> Plan {
    let Problem { mut nodes, asks } = problem;
    let mut plan = Plan::default();
    for ask in asks {
        let best = nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| misfit(node, &ask, &node.free).is_none())
            .max_by_key(|(at, node)| (score(node, &ask), std::cmp::Reverse(*at)))
            .map(|(at, _)| at);
        match best {
            Some(at) => {
                let node = &mut nodes[at];
                node.free.take(&ask.resources);
                node.actors += 1;
                if let Some(id) = &node.id {
                    plan.placed.push((ask.actor, id.clone()));
                }
            }
            None => {
                let why = explain(&nodes, &ask);
                plan.waiting.push((ask.actor, why));
            }
        }
    }
    plan
}

/// Larger is better: model in memory, model on disk, then the strategy.
fn score(node: &NodeView, ask: &Ask) -> (u8, i64, i64) {
    let warmth = match &ask.model {
        Some(model) if node.loaded.contains(model) => 2,
        Some(model) if node.available.contains(model) => 1,
        _ => 0,
    };
    let used = node.total.cpu_milli.saturating_sub(node.free.cpu_milli) as i64;
    let load = used * 1000 / node.total.cpu_milli.max(1) as i64;
    match ask.strategy {
        Strategy::Spread => (warmth, -load, -(node.actors as i64)),
        Strategy::Pack => (warmth, load, node.actors as i64),
    }
}

fn misfit(node: &NodeView, ask: &Ask, room: &Resources) -> Option<String> {
    for (key, value) in &ask.labels {
        if node.labels.get(key) != Some(value) {
            return Some(format!("needs label {key}={value}"));
        }
    }
    match (&ask.python, &node.python) {
        (Some(_), None) => return Some("needs a worker with Python".into()),
        (Some(want), Some(have)) if !want.is_empty() && want != have => {
            return Some(format!("needs Python {want}, the worker has {have}"));
        }
        _ => {}
    }
    room.lacks(&ask.resources)
}

fn explain(nodes: &[NodeView], ask: &Ask) -> Why {
    let Some(first) = nodes.first() else {
        return Why { text: "no live workers".into(), never: false };
    };
    let count = nodes.len();
    let plural = if count == 1 { "node" } else { "nodes" };
    match nodes.iter().find(|node| misfit(node, ask, &node.total).is_none()) {
        Some(node) => {
            let text = misfit(node, ask, &node.free).unwrap_or_default();
            Why { text: format!("{text}; {count} {plural}"), never: false }
        }
        None => {
            let text = misfit(first, ask, &first.total).unwrap_or_default();
            Why { text: format!("{text} on any of {count} {plural}"), never: true }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Strategy;
    use super::*;

    fn node(name: &str, cpus: u64, free: u64) -> NodeView {
        NodeView {
            id: Some(name.into()),
            total: Resources { cpu_milli: cpus * 1000, ..Default::default() },
            free: Resources { cpu_milli: free * 1000, ..Default::default() },
            ..Default::default()
        }
    }

    fn ask(name: &str, cpus: u64, strategy: Strategy) -> Ask {
        Ask {
            actor: name.into(),
            resources: Resources { cpu_milli: cpus * 1000, ..Default::default() },
            labels: BTreeMap::new(),
            model: None,
            strategy,
            python: None,
        }
    }

    fn check(nodes: Vec<NodeView>, asks: Vec<Ask>) -> String {
        let plan = plan(Problem { nodes, asks });
        let placed = plan.placed.iter().map(|(a, n)| format!("{a}@{n}"));
        let waiting =
            plan.waiting.iter().map(|(a, w)| format!("{a}: {}{}", w.text, if w.never { " (never)" } else { "" }));
        placed.chain(waiting).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn spread_takes_the_idle_node_and_pack_the_full_one() {
        let nodes = || vec![node("a", 4, 2), node("b", 4, 4)];
        assert_eq!(check(nodes(), vec![ask("x", 1, Strategy::Spread)]), "x@b");
        assert_eq!(check(nodes(), vec![ask("x", 1, Strategy::Pack)]), "x@a");
    }

    #[test]
    fn the_reason_names_what_is_missing() {
        assert_eq!(check(vec![], vec![ask("x", 1, Strategy::Spread)]), "x: no live workers");
        assert_eq!(check(vec![node("a", 2, 1)], vec![ask("x", 2, Strategy::Pack)]), "x: needs cpus=2, 1 free; 1 node");
        assert_eq!(
            check(vec![node("a", 2, 1), node("b", 2, 2)], vec![ask("x", 8, Strategy::Pack)]),
            "x: needs cpus=8, 2 free on any of 2 nodes (never)"
        );
        let mut labelled = ask("x", 0, Strategy::Pack);
        labelled.labels.insert("zone".into(), "a".into());
        assert_eq!(check(vec![node("a", 2, 1)], vec![labelled]), "x: needs label zone=a on any of 1 node (never)");
    }

    #[test]
    fn a_loaded_model_beats_an_idle_node() {
        let mut warm = node("a", 4, 1);
        warm.loaded.insert("tiny".into());
        let mut thinking = ask("x", 1, Strategy::Spread);
        thinking.model = Some("tiny".into());
        assert_eq!(check(vec![node("b", 4, 4), warm], vec![thinking]), "x@a");
    }

    #[test]
    fn a_small_ask_passes_a_big_one_that_waits() {
        let asks = vec![ask("big", 4, Strategy::Spread), ask("small", 1, Strategy::Spread)];
        assert_eq!(check(vec![node("a", 4, 2)], asks), "small@a, big: needs cpus=4, 2 free; 1 node");
    }

    proptest! {
        #[test]
        fn nothing_is_overbooked_and_nothing_waits_that_fits(
            frees in prop::collection::vec(0u64..8, 1..6),
            needs in prop::collection::vec(0u64..5, 0..20),
            pack: bool,
        ) {
            let strategy = if pack { Strategy::Pack } else { Strategy::Spread };
            let nodes: Vec<_> = frees.iter().enumerate().map(|(i, f)| node(&format!("n{i}"), 8, *f)).collect();
            let asks: Vec<_> = needs.iter().enumerate().map(|(i, n)| ask(&format!("a{i:02}"), *n, strategy)).collect();
            let need: BTreeMap<_, _> = asks.iter().map(|a| (a.actor.clone(), a.resources.cpu_milli)).collect();
            let plan = plan(Problem { nodes: nodes.clone(), asks });
            let mut left: BTreeMap<_, _> = nodes.iter().map(|n| (n.id.clone().unwrap(), n.free.cpu_milli as i64)).collect();
            for (actor, node) in &plan.placed {
                *left.get_mut(node).unwrap() -= need[actor] as i64;
            }
            prop_assert!(left.values().all(|l| *l >= 0));
            prop_assert_eq!(plan.placed.len() + plan.waiting.len(), needs.len());
            for (actor, _) in &plan.waiting {
                prop_assert!(left.values().all(|l| *l < need[actor] as i64));
            }
        }
    }
}
