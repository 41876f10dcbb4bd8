"""A program in Ray's words: it runs on Covey after its import was changed."""

import random
from typing import Any

from covey.compat import ray  # was: import ray


@ray.remote
class Progress:
    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def report(self, samples: int) -> None:
        self.done += samples

    def share(self) -> float:
        return self.done / self.total


@ray.remote(num_cpus=0.5)
def hits(samples: int, seed: int, progress: Any) -> int:
    """How many random points of a square lie within its circle."""
    rng = random.Random(seed)
    inside = sum(rng.random() ** 2 + rng.random() ** 2 < 1 for _ in range(samples))
    ray.get(progress.report.remote(samples))
    return inside


def main() -> None:
    ray.init()
    batches, samples = 20, 50_000
    progress = Progress.remote(batches * samples)
    waiting = [hits.remote(samples, seed, progress) for seed in range(batches)]
    inside = 0
    while waiting:
        # Results as they come, in any order.
        done, waiting = ray.wait(waiting, num_returns=min(5, len(waiting)))
        inside += sum(ray.get(done))
        print(f"{ray.get(progress.share.remote()):4.0%} done")
    pi = 4 * inside / (batches * samples)
    print(f"pi is about {pi:.3f}")
    assert 3.13 < pi < 3.15
    ray.shutdown()


if __name__ == "__main__":
    main()
