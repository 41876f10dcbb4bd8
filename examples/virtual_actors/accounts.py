"""Virtual actors: each key has one actor, which exists when it is spoken to, sleeps when nobody does, and keeps its state."""

import time
from typing import Any

import covey
from covey import Actor, agent


# snapshot="turn": what an answer says is on disk before the answer is sent. idle: it sleeps after that long without calls.
@agent(snapshot="turn", idle="2s")
class Account(Actor):
    """The account of one person."""

    def __init__(self, key: str) -> None:
        self.owner = key
        self.balance = 0
        self.woken = 0

    @covey.method
    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @covey.method
    def describe(self) -> str:
        return f"{self.owner} has {self.balance}, woken {self.woken} times"

    def __snapshot__(self) -> dict[str, Any]:
        return {"balance": self.balance, "woken": self.woken}

    def __restore__(self, state: dict[str, Any]) -> None:
        self.balance, self.woken = state["balance"], state["woken"] + 1


def main() -> None:
    ada, bob = Account.at("ada"), Account.at("bob")  # costs nothing: neither is made yet
    before = ada.deposit.remote(100).result(timeout=30)
    bob.deposit.remote(7).result(timeout=30)
    awake = [actor["id"] for actor in covey.actors(agent=Account.name)]
    print("awake:", *awake)

    while any(actor["state"] != "dead" for actor in covey.actors(agent=Account.name)):
        time.sleep(0.05)  # nothing tells when an actor falls asleep, so we look
    print("all asleep; they take no memory and no process now")

    # The next call wakes one, wherever there is room, with what it had.
    balance = ada.deposit.remote(23).result(timeout=30)
    print(ada.describe.remote().result(timeout=30))
    assert balance == before + 23


if __name__ == "__main__":
    with covey.init():
        main()
