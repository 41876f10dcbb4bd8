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

use covey_domain::{
    ActorId, Isolation, ModelName, NodeId, Resources,
    agent::{GangStrategy, Strategy},
    isolation::Offer,
};

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
    /// Why it has none; may be empty.
    pub no_python: String,
    /// How much it can keep processes from.
    pub isolation: Offer,
}

/// What an actor asks of its place. Actors of one shape are alike to the scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// On the node of this actor and no other.
    pub near: Option<ActorId>,
    /// How much its process is kept from; `None` = as much as the node says.
    pub isolation: Option<Isolation>,
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
#[derive(Clone, Debug, Default)]
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
        self.place_among(shape, |_| true).ok_or_else(|| self.explain(shape))
    }

    /// The best place among nodes that `may` be taken.
    fn place_among(&self, shape: &Shape, may: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
        let fits = |id: &NodeId| may(id) && self.fits(id, shape);
        if let Some(model) = &shape.model {
            for index in [&self.loaded, &self.available] {
                let nodes = index.get(model).into_iter().flatten();
                let fitting = nodes.filter(|id| fits(id));
                let key = |id: &&NodeId| {
                    let view = &self.nodes[*id];
                    let (load, actors, id) = load_key(id, view);
                    match shape.strategy {
                        Strategy::Spread => (load, actors, id),
                        Strategy::Pack => (u64::MAX - load, usize::MAX - actors, id),
                    }
                };
                if let Some(best) = fitting.min_by_key(key) {
                    return Some(best.clone());
                }
            }
        }
        let best = match shape.strategy {
            Strategy::Spread => self.by_load.iter().map(|(_, _, id)| id).find(|id| fits(id)),
            Strategy::Pack => {
                let least: (u64, Reverse<usize>, NodeId) =
                    (shape.resources.cpu_milli, Reverse(usize::MAX), NodeId::from(""));
                self.by_room.range(least..).map(|(_, _, id)| id).find(|id| fits(id))
            }
        };
        best.cloned()
    }

    /// Whether an actor of this shape can go to this node, and if not, why.
    pub fn place_at(&self, shape: &Shape, id: &NodeId) -> Result<(), Why> {
        let Some(node) = self.nodes.get(id) else {
            return Err(Why { text: format!("node `{id}` takes no actors now"), never: false });
        };
        match misfit(node, shape, &node.free) {
            None => Ok(()),
            Some(text) => {
                let never = misfit(node, shape, &node.total).is_some();
                Err(Why { text: format!("{text} on node `{id}`"), never })
            }
        }
    }

    /// Places for all of these shapes at once, in their order, or for none. What is found is taken; on failure nothing is.
    pub fn place_all(&mut self, shapes: &[Shape], strategy: GangStrategy) -> Result<Vec<NodeId>, Why> {
        let count = shapes.len();
        self.try_all(shapes, strategy).map_err(|why| {
            let mut empty = Self::default();
            for (id, view) in &self.nodes {
                empty.set(id, NodeView { free: view.total.clone(), actors: 0, ..view.clone() });
            }
            let never = !self.is_empty() && empty.try_all(shapes, strategy).is_err();
            let all = if never { " even when nothing else runs" } else { "" };
            Why { text: format!("all {count} of its gang do not fit at once{all}: {}", why.text), never }
        })
    }

    fn try_all(&mut self, shapes: &[Shape], strategy: GangStrategy) -> Result<Vec<NodeId>, Why> {
        if strategy == GangStrategy::StrictPack {
            // One node for the sum of them.
            let mut whole = Shape { near: None, ..shapes.first().cloned().unwrap_or_default() };
            for shape in shapes.iter().skip(1) {
                whole.resources.put_back(&shape.resources);
                whole.labels.extend(shape.labels.clone());
                whole.isolation = whole.isolation.max(shape.isolation);
            }
            let node = self.place(&whole)?;
            if let Some(shape) =
                shapes.iter().find(|s| misfit(&self.nodes[&node], s, &self.nodes[&node].total).is_some())
            {
                return Err(self.explain(shape));
            }
            self.take(&node, &whole.resources, shapes.len());
            return Ok(vec![node; shapes.len()]);
        }
        // The largest first: small ones find room beside them.
        let mut order: Vec<usize> = (0..shapes.len()).collect();
        order.sort_by_key(|i| Reverse(&shapes[*i].resources));
        let (mut chosen, mut used) = (vec![None; shapes.len()], BTreeSet::new());
        let mut touched: BTreeMap<NodeId, NodeView> = BTreeMap::new();
        for i in order {
            let shape = &shapes[i];
            let found = match strategy {
                GangStrategy::StrictSpread => self.place_among(shape, |id| !used.contains(id)),
                GangStrategy::Spread => {
                    self.place_among(shape, |id| !used.contains(id)).or_else(|| self.place_among(shape, |_| true))
                }
                GangStrategy::Pack | GangStrategy::StrictPack => self
                    .place_among(shape, |id| used.contains(id))
                    .or_else(|| self.place_among(&Shape { strategy: Strategy::Pack, ..shape.clone() }, |_| true)),
            };
            let Some(node) = found else {
                let why = match strategy {
                    GangStrategy::StrictSpread if self.place(shape).is_ok() => {
                        Why { text: format!("each wants a node of its own, there are {}", self.len()), never: false }
                    }
                    _ => self.explain(shape),
                };
                for (id, view) in touched {
                    self.update(&id, &view.free, view.actors);
                }
                return Err(why);
            };
            touched.entry(node.clone()).or_insert_with(|| self.nodes[&node].clone());
            self.take(&node, &shape.resources, 1);
            used.insert(node.clone());
            chosen[i] = Some(node);
        }
        Ok(chosen.into_iter().flatten().collect())
    }

    fn take(&mut self, id: &NodeId, resources: &Resources, actors: usize) {
        let Some(view) = self.nodes.get(id) else { return };
        let (mut free, actors) = (view.free.clone(), view.actors + actors);
        free.take(resources);
        self.update(id, &free, actors);
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
                placer.take(&node, &shape.resources, 1);
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
    if let Some(why) = node.isolation.refuses(ask.isolation) {
        return Some(why);
    }
    match (&ask.python, &node.python) {
        (Some(_), None) => {
            let why = Some(node.no_python.as_str()).filter(|why| !why.is_empty());
            let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
            return Some(format!("needs a worker whose Python has the covey package{why}"));
        }
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
            strategy,
            ..Shape::default()
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
    fn isolation_is_asked_of_nodes_that_can_give_it() {
        let of = |name: &str, least, most, lacks: &str| {
            let (id, view) = node(name, 2, 2);
            (id, NodeView { isolation: Offer { least, most, lacks: lacks.into() }, ..view })
        };
        let wants = |isolation| {
            let (id, shape) = ask("x", 1, Strategy::Spread);
            vec![(id, Shape { isolation, ..shape })]
        };
        let (free, usual, strict) = (Isolation::None, Isolation::Default, Isolation::Strict);
        let poor = || of("poor", usual, usual, "no namespaces");
        assert_eq!(check(vec![poor()], wants(None)), "x@poor");
        assert_eq!(
            check(vec![poor()], wants(Some(strict))),
            "x: needs a worker that can isolate with `strict` (no namespaces) on any of 1 node (never)"
        );
        assert_eq!(check(vec![poor(), of("rich", usual, strict, "")], wants(Some(strict))), "x@rich");
        assert_eq!(
            check(vec![poor()], wants(Some(free))),
            "x: needs a worker that was started with `--isolation none` on any of 1 node (never)"
        );
        assert_eq!(check(vec![poor(), of("free", free, strict, "")], wants(Some(free))), "x@free");
        // All of a gang on one node: the strictest of them says which.
        let mut placer = Placer::default();
        for (id, view) in [poor(), of("rich", usual, strict, "")] {
            placer.set(&id, view);
        }
        let shapes = [None, Some(strict), None].map(|isolation| wants(isolation).remove(0).1);
        let small = shapes.map(|shape| Shape { resources: Resources::default(), ..shape });
        assert_eq!(placer.place_all(&small, GangStrategy::StrictPack), Ok(vec!["rich".into(); 3]));
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

    fn gang(nodes: &[u64], needs: &[u64], strategy: GangStrategy) -> Result<String, String> {
        let mut placer = Placer::default();
        for (i, free) in nodes.iter().enumerate() {
            let (id, view) = node(&format!("n{i}"), 4, *free);
            placer.set(&id, view);
        }
        let before = format!("{placer:?}");
        let shapes: Vec<_> = needs.iter().map(|n| ask("x", *n, Strategy::Spread).1).collect();
        let placed = placer.place_all(&shapes, strategy);
        if placed.is_err() {
            assert_eq!(format!("{placer:?}"), before, "nothing is taken by a gang that does not fit");
        }
        placed.map(|p| p.iter().map(NodeId::as_str).collect::<Vec<_>>().join(" ")).map_err(|w| w.text)
    }

    #[test]
    fn a_gang_is_placed_whole_or_not_at_all() {
        use GangStrategy::{Pack, Spread, StrictPack, StrictSpread};
        assert_eq!(gang(&[2, 2], &[1, 1, 1, 1], Spread), Ok("n0 n1 n0 n1".into()));
        assert_eq!(gang(&[2, 2], &[1, 1], Pack), Ok("n0 n0".into()));
        assert_eq!(gang(&[1, 2], &[1, 1], StrictPack), Ok("n1 n1".into()));
        assert_eq!(gang(&[2, 2], &[1, 1], StrictSpread), Ok("n0 n1".into()));
        assert_eq!(gang(&[1, 3], &[1, 3], Spread), Ok("n0 n1".into()), "the large one first");
        let waits = gang(&[2, 1], &[1, 1, 1, 1], Spread).unwrap_err();
        assert_eq!(waits, "all 4 of its gang do not fit at once: needs cpus=1, 0 free; 2 nodes");
        let never = gang(&[4, 4], &[1, 1, 1], StrictSpread).unwrap_err();
        assert!(never.contains("even when nothing else runs: each wants a node of its own, there are 2"), "{never}");
        assert!(gang(&[4, 4], &[3, 3], StrictPack).unwrap_err().contains("even when nothing else runs"));
    }

    proptest! {
        #[test]
        fn gangs_overbook_nothing(
            frees in prop::collection::vec(0u64..5, 1..5),
            needs in prop::collection::vec(0u64..4, 1..6),
            strategy in prop::sample::select(vec![
                GangStrategy::Pack, GangStrategy::Spread, GangStrategy::StrictPack, GangStrategy::StrictSpread,
            ]),
        ) {
            if let Ok(places) = gang(&frees, &needs, strategy) {
                let places: Vec<_> = places.split(' ').collect();
                for (i, free) in frees.iter().enumerate() {
                    let name = format!("n{i}");
                    let taken: u64 = places.iter().zip(&needs).filter(|(p, _)| **p == name).map(|(_, n)| n).sum();
                    prop_assert!(taken <= *free);
                }
                let distinct: BTreeSet<_> = places.iter().collect();
                match strategy {
                    GangStrategy::StrictPack => prop_assert_eq!(distinct.len(), 1),
                    GangStrategy::StrictSpread => prop_assert_eq!(distinct.len(), needs.len()),
                    GangStrategy::Pack | GangStrategy::Spread => {}
                }
            }
        }

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
