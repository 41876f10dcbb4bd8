//! Seeded worlds: whatever breaks, no acknowledged task is lost and each ends once. A seed that fails stays here.

use covey_testbed::World;

fn live(seed: u64) {
    let mut world = World::new(seed, 3);
    for number in 0..20 {
        world.submit(number);
        world.step(true);
    }
    for _ in 0..600 {
        world.step(true);
        world.check();
    }
    // The trouble is over: everything must come to its end.
    for _ in 0..20_000 {
        if world.is_done() {
            break;
        }
        world.step(false);
    }
    world.check();
    assert!(world.is_done(), "T-1: seed {seed} left tasks unfinished");
}

#[test]
fn three_hundred_worlds_keep_the_invariants() {
    for seed in 1..=300 {
        let outcome = std::panic::catch_unwind(|| live(seed));
        assert!(outcome.is_ok(), "seed {seed} broke an invariant");
    }
}
