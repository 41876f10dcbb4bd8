"""Publish and subscribe: what one publishes, all who listen hear; actors and programs alike."""

import itertools

import covey
from covey import Actor, agent


@agent
class Desk(Actor):
    """Collects the news that it hears."""

    def __init__(self, city: str) -> None:
        self.city = city
        self.heard: list[str] = []

    @covey.method
    def subscribe(self) -> None:
        # From now on each message of the topic is a call of `hear`.
        covey.topic("news").join("hear")

    @covey.method
    def hear(self, headline: str) -> None:
        self.heard.append(f"{self.city}: {headline}")

    @covey.method
    def all_heard(self) -> list[str]:
        return self.heard


def main() -> None:
    desks = [Desk.remote(city) for city in ("Lagos", "Lima", "Oslo")]
    covey.get([desk.subscribe.remote() for desk in desks], timeout=30)

    news = covey.topic("news")
    # This program listens too, for as long as the `with` lasts.
    with news.listen() as messages:
        # A publisher knows how many listen: with `sure` each has heard it when the future is done.
        for headline in ("rain", "sun"):
            listeners = news.publish(headline, sure=True).result(timeout=30)
            print(f"{listeners} have heard of {headline}")
            assert listeners == len(desks) + 1
        mine = list(itertools.islice(messages, 2))
    print("this program has heard of", *mine)

    for desk in desks:
        heard = desk.all_heard.remote().result(timeout=30)
        print(*heard, sep="\n")
        assert len(heard) == 2
    assert mine == ["rain", "sun"]


if __name__ == "__main__":
    with covey.init():
        main()
