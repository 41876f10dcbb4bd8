//! How the head's decisions scale: placements per second over numbers of nodes and actors, in the very machine that
//! production runs, without a network. Prints one JSON object a line.

use std::{sync::Arc, time::Instant};

use covey_cluster_core::{
    Head, HeadConfig, Output,
    head::{ActorReport, Command, CreateActor, Hello, Owner},
};
use covey_domain::{ActorId, NodeId, Resources};

fn head(nodes: usize) -> Head {
    let mut head = Head::new(HeadConfig::default(), 1);
    let spec = serde_json::json!({
        "name": "a", "kind": {"type": "native", "implementation": "a"}, "resources": {"cpu_milli": 10},
    });
    head.register(serde_json::from_value(spec).expect("a valid agent"), 0).expect("a valid agent");
    for number in 0..nodes {
        let hello = Hello {
            incarnation: 1,
            name: format!("n{number}"),
            total: Resources { cpu_milli: 1_000_000, ..Resources::default() },
            ..Hello::default()
        };
        head.joined(&NodeId::from(format!("n{number:04}")), number as u64, hello, 0).expect("a fresh name");
    }
    while head.poll_output().is_some() {}
    head
}

/// Carries out what the head says, as workers that start everything at once.
fn answer(head: &mut Head) -> usize {
    let mut started = Vec::new();
    while let Some(output) = head.poll_output() {
        if let Output::Send(node, Command::Start { actor, epoch, .. }) = output {
            started.push((node, actor, epoch));
        }
    }
    for (node, actor, epoch) in &started {
        head.actor_report(node, actor, *epoch, ActorReport::Live, 1);
    }
    while head.poll_output().is_some() {}
    started.len()
}

fn main() {
    for (nodes, actors) in
        [(1, 10_000), (10, 10_000), (100, 10_000), (1_000, 10_000), (1_000, 100_000), (1_000, 1_000_000)]
    {
        let mut head = head(nodes);
        head.open_session("s".into(), covey_domain::Digest::of(b"secret"), 1).expect("the first session");
        let begin = Instant::now();
        let mut placed = 0;
        for number in 0..actors {
            let ask = CreateActor {
                id: ActorId::from(format!("actor-{number}")),
                agent: "a".into(),
                name: None,
                get_if_exists: false,
                owner: Owner::Session("s".into()),
                init: None,
                overrides: serde_json::Map::new(),
                least: covey_domain::Isolation::None,
                keeps_labels: false,
            };
            head.create_actor(ask, 1).expect("a known agent");
            placed += answer(&mut head);
        }
        let seconds = begin.elapsed().as_secs_f64();
        assert_eq!(placed, actors, "everything fits");
        // One node dies: all that was on it is placed again.
        let begin = Instant::now();
        let lost = actors / nodes;
        let node = NodeId::from("n0000");
        head.let_go(&node, 0, 2);
        let total = Resources { cpu_milli: 1_000_000, ..Resources::default() };
        let hello = Hello { incarnation: 2, name: "n0".into(), total, ..Hello::default() };
        head.joined(&node, 9_999_999, hello, 2).expect("its earlier process is over");
        head.tick(1_000);
        let again = answer(&mut head);
        let recovery = begin.elapsed().as_secs_f64();
        println!(
            "{}",
            serde_json::json!({
                "nodes": nodes, "actors": actors, "placements_per_s": (actors as f64 / seconds) as u64,
                "us_each": (seconds * 1e6 / actors as f64 * 100.0).round() / 100.0,
                "lost_with_a_node": lost, "placed_again": again, "again_ms": (recovery * 1e4).round() / 10.0,
            })
        );
        drop(Arc::new(head));
    }
}
