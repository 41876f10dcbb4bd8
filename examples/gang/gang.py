"""A gang: actors that get their places all at once or not at all, for work that none of them can begin alone."""

import covey
from covey import Actor, agent


@agent(cpus=1)
class Trainer(Actor):
    """Keeps a part of a model; a round of training needs every part."""

    def __init__(self, rank: int) -> None:
        self.weight = float(rank)

    @covey.method
    def gradient(self, target: float) -> float:
        return self.weight - target

    @covey.method
    def step(self, gradient: float) -> float:
        self.weight -= gradient / 2
        return self.weight


def train(team: list[Trainer]) -> list[float]:
    weights: list[float] = []
    for _ in range(20):
        gradients = covey.get([member.gradient.remote(5.0) for member in team], timeout=30)
        steps = [member.step.remote(gradient) for member, gradient in zip(team, gradients, strict=True)]
        weights = covey.get(steps, timeout=30)
    return weights


def main() -> None:
    # The worker has four CPUs: one team of three fits, two do not.
    first = covey.gang([Trainer.bind(rank) for rank in range(3)])
    print("first team:", [f"{weight:.2f}" for weight in train(first)])

    second = covey.gang([Trainer.bind(rank) for rank in range(3)])
    waiting = second[0].gradient.remote(0.0)
    # While the second team waits it holds no place: the fourth CPU is free for somebody else.
    single = Trainer.remote(9)
    assert single.gradient.remote(0.0).result(timeout=30) == 9.0
    print("one more fits; the second team waits:", not waiting.done())
    assert not waiting.done()

    for member in first:
        member.kill()
    single.kill()
    weights = train(second)
    print("second team:", [f"{weight:.2f}" for weight in weights])
    assert all(abs(weight - 5.0) < 0.01 for weight in weights)

    # Three nodes for three actors: one node never has them, and the first call says so.
    try:
        covey.gang([Trainer.bind(rank) for rank in range(3)], strategy="strict_spread")[0].gradient.remote(0.0).result(timeout=30)
    except covey.Unschedulable as error:
        print("refused:", error)
    else:
        raise AssertionError("it was placed")


if __name__ == "__main__":
    with covey.init(cpus=4):
        main()
