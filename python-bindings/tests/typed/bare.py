"""Classes without the base `covey.Actor`, which pyright knows by what the decorator makes of them."""

import covey


@covey.agent
class Bare:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    def run(self) -> int:
        return self.limit


@covey.agent(cpus=1)
class Sized:
    def run(self) -> int:
        return 1


reveal_type(Bare)  # Agent[(limit: int), Bare]
reveal_type(Sized)  # Agent[(), Sized]
reveal_type(Bare.remote(1))  # Handle
reveal_type(Sized.pool(2))  # Pool
reveal_type(Bare.options(cpus=1).at("x"))  # Handle
Bare.remote("x")  # wrong
