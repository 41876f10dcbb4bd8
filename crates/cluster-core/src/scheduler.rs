//! Placement as a pure machine: a [`Placer`] holds the live nodes in order of load and of room, kept up to date change by
//! change, so that one placement costs a few steps in an ordered set and not a look at every node. [`plan`] puts a whole
//! [`Problem`] through it.
//!
//! Wished and tested: nothing is placed where it does not fit; nothing waits that fits somewhere; of two plans the one
//! that keeps to labels, loaded models and the strategy wins; the same problem gives the same plan.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use covey_domain::{ActorId, ModelName, NodeId, Resources, agent::Strategy};

/// What the scheduler may know.
#[derive(Clone, Debug, Default)]
pub struct Problem {
    /// Live nodes.
    pub nodes: Vec<(NodeId, NodeView)>,
    /// Actors without a place, oldest first.
    pub asks: Vec<(ActorId, Shape)>,
}

/// One live node.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
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

/// What an actor asks of its place. Actors of one shape are alike to the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
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

/// Live nodes in the orders that strategies ask for.
#[derive(Debug, Default)]
pub struct Placer {
    nodes: BTreeMap<NodeId, NodeView>,
    /// Thousandths of its CPUs in use, actors, id: the first is the idlest.
    by_load: BTreeSet<(u64, usize, NodeId)>,
    /// Thousandths of CPUs free, fewer actors last, id: the first with enough is the fullest that fits.
    by_room: BTreeSet<(u64, Reverse<usize>, NodeId)>,
    /// Which nodes have a model in memory, and which could load it.
    loaded: BTreeMap<ModelName, BTreeSet<NodeId>>,
    available: BTreeMap<ModelName, BTreeSet<NodeId>>,
}

impl Placer {
    /// A node is there, or is not what it was.
    pub fn set(&mut self, id: &NodeId, view: NodeView) {
        self.remove(id);
        self.by_load.insert(load_key(id, &view));
        self.by_room.insert(room_key(id, &view));
        for (index, models) in [(&mut self.loaded, &view.loaded), (&mut self.available, &view.available)] {
            for model in models {
                index.entry(model.clone()).or_default().insert(id.clone());
            }
        }
        self.nodes.insert(id.clone(), view);
    }

    /// A node takes no more actors.
    pub fn remove(&mut self, id: &NodeId) {
        let Some(view) = self.nodes.remove(id) else { return };
        self.by_load.remove(&load_key(id, &view));
        self.by_room.remove(&room_key(id, &view));
        for (index, models) in [(&mut self.loaded, &view.loaded), (&mut self.available, &view.available)] {
            for model in models {
                if let Some(nodes) = index.get_mut(model) {
                    nodes.remove(id);
                    if nodes.is_empty() {
                        index.remove(model);
                    }
                }
            }
        }
    }

    /// What a node has left, and how many actors, has changed.
    pub fn update(&mut self, id: &NodeId, free: &Resources, actors: usize) {
        let Some(view) = self.nodes.get_mut(id) else { return };
        self.by_load.remove(&load_key(id, view));
        self.by_room.remove(&room_key(id, view));
        view.free.clone_from(free);
        view.actors = actors;
        self.by_load.insert(load_key(id, view));
        self.by_room.insert(room_key(id, view));
    }

    /// Live nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// No live nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The best place for an actor of this shape: model in memory, model on disk, then the strategy. Takes nothing yet.
    pub fn place(&self, shape: &Shape) -> Result<NodeId, Why> {
        if let Some(model) = &shape.model {
            for index in [&self.loaded, &self.available] {
                let nodes = index.get(model).into_iter().flatten();
                let fitting = nodes.filter(|id| self.fits(id, shape));
                let key = |id: &&NodeId| {
                    let view = &self.nodes[*id];
                    let (load, actors, id) = load_key(id, view);
                    match shape.strategy {
                        Strategy::Spread => (load, actors, id),
                        Strategy::Pack => (u64::MAX - load, usize::MAX - actors, id),
                    }
                };
                if let Some(best) = fitting.min_by_key(key) {
                    return Ok(best.clone());
                }
            }
        }
        let best = match shape.strategy {
            Strategy::Spread => self.by_load.iter().map(|(_, _, id)| id).find(|id| self.fits(id, shape)),
            Strategy::Pack => {
                let least: (u64, Reverse<usize>, NodeId) =
                    (shape.resources.cpu_milli, Reverse(usize::MAX), NodeId::from(""));
                self.by_room.range(least..).map(|(_, _, id)| id).find(|id| self.fits(id, shape))
            }
        };
        best.cloned().ok_or_else(|| self.explain(shape))
    }

    fn fits(&self, id: &NodeId, shape: &Shape) -> bool {
        self.nodes.get(id).is_some_and(|node| misfit(node, shape, &node.free).is_none())
    }

    fn explain(&self, shape: &Shape) -> Why {
        let Some(first) = self.nodes.values().next() else {
            return Why { text: "no live workers".into(), never: false };
        };
        let count = self.nodes.len();
        let plural = if count == 1 { "node" } else { "nodes" };
        match self.nodes.values().find(|node| misfit(node, shape, &node.total).is_none()) {
            Some(node) => {
                let text = misfit(node, shape, &node.free).unwrap_or_default();
                Why { text: format!("{text}; {count} {plural}"), never: false }
            }
            None => {
                let text = misfit(first, shape, &first.total).unwrap_or_default();
                Why { text: format!("{text} on any of {count} {plural}"), never: true }
            }
        }
    }
}

fn load_key(id: &NodeId, view: &NodeView) -> (u64, usize, NodeId) {
    let used = view.total.cpu_milli.saturating_sub(view.free.cpu_milli);
    (used * 1000 / view.total.cpu_milli.max(1), view.actors, id.clone())
}

fn room_key(id: &NodeId, view: &NodeView) -> (u64, Reverse<usize>, NodeId) {
    (view.free.cpu_milli, Reverse(view.actors), id.clone())
}

/// Places what fits, oldest first. An ask that does not fit does not hold up later ones.
pub fn plan(problem: Problem) -> Plan {
    let mut placer = Placer::default();
    for (id, view) in problem.nodes {
        placer.set(&id, view);
    }
    let mut plan = Plan::default();
    for (actor, shape) in problem.asks {
        match placer.place(&shape) {
            Ok(node) => {
                let view = &placer.nodes[&node];
                let (mut free, actors) = (view.free.clone(), view.actors + 1);
                free.take(&shape.resources);
                placer.update(&node, &free, actors);
                plan.placed.push((actor, node));
            }
            Err(why) => plan.waiting.push((actor, why)),
        }
    }
    plan
}

fn misfit(node: &NodeView, ask: &Shape, room: &Resources) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Strategy;
    use super::*;

    fn node(name: &str, cpus: u64, free: u64) -> (NodeId, NodeView) {
        let view = NodeView {
            total: Resources { cpu_milli: cpus * 1000, ..Default::default() },
            free: Resources { cpu_milli: free * 1000, ..Default::default() },
            ..Default::default()
        };
        (name.into(), view)
    }

    fn ask(name: &str, cpus: u64, strategy: Strategy) -> (ActorId, Shape) {
        let shape = Shape {
            resources: Resources { cpu_milli: cpus * 1000, ..Default::default() },
            labels: BTreeMap::new(),
            model: None,
            strategy,
            python: None,
        };
        (name.into(), shape)
    }

    fn check(nodes: Vec<(NodeId, NodeView)>, asks: Vec<(ActorId, Shape)>) -> String {
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
        labelled.1.labels.insert("zone".into(), "a".into());
        assert_eq!(check(vec![node("a", 2, 1)], vec![labelled]), "x: needs label zone=a on any of 1 node (never)");
    }

    #[test]
    fn a_loaded_model_beats_an_idle_node() {
        let mut warm = node("a", 4, 1);
        warm.1.loaded.insert("tiny".into());
        let mut thinking = ask("x", 1, Strategy::Spread);
        thinking.1.model = Some("tiny".into());
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
            let need: BTreeMap<_, _> = asks.iter().map(|(a, s)| (a.clone(), s.resources.cpu_milli)).collect();
            let plan = plan(Problem { nodes: nodes.clone(), asks });
            let mut left: BTreeMap<_, _> = nodes.iter().map(|(id, n)| (id.clone(), n.free.cpu_milli as i64)).collect();
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
