"""An actor: a class whose instances live in the cluster and keep their state between calls."""

import covey
from covey import Actor, agent


@agent
class Greeter(Actor):
    """Greets, and counts whom it has greeted."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting
        self.greeted = 0

    @covey.method
    def greet(self, name: str) -> str:
        self.greeted += 1
        return f"{self.greeting}, {name}! You are number {self.greeted}."


def main() -> None:
    greeter = Greeter.remote("Hello")
    # A call gives a future at once. The calls of one caller run in the order in which they were made.
    first = greeter.greet.remote("Ada")
    second = greeter.greet.remote("Grace")
    print(first.result(timeout=30))
    print(second.result(timeout=30))
    assert second.result() == "Hello, Grace! You are number 2."


if __name__ == "__main__":
    # A cluster of its own on this machine, which stops at the end; or the one that COVEY_ADDRESS names.
    with covey.init():
        main()
