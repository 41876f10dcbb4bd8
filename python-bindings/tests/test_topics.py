"""Topics: order, several nodes, listeners that sleep, die, are slow or full, and publishers of all kinds."""

import threading

import numpy
import pytest
from conftest import eventually

import covey
from covey import agent


@agent
class Ear:
    def __init__(self, *_):
        self.heard = []

    def hear(self, value):
        self.heard.append(value)

    def all(self):
        return self.heard

    async def say(self, topic, value):
        return await covey.topic(topic).publish(value)

    def join(self, topic):
        covey.topic(topic).join("hear")

    def leave(self, topic):
        covey.topic(topic).leave()

    def die(self):
        import os

        os._exit(9)

    def __snapshot__(self):
        return self.heard

    def __restore__(self, heard):
        self.heard = heard


def heard_by(*ears):
    return covey.get([ear.all.remote() for ear in ears], timeout=30)


def test_all_who_listen_hear_in_order_on_all_nodes(nodes):
    nodes.head()
    nodes.worker("a", "--cpus", "2")
    nodes.worker("b", "--cpus", "2", "--no-listen")  # only through the head
    with nodes.connect():
        nodes.live(2)
        news = covey.topic("news")
        assert news.publish("nobody").result(10) == 0
        ears = [Ear.options(strategy="spread").remote() for _ in range(6)]
        for ear in ears:
            news.add(ear, "hear")
        for i in range(200):
            news.publish(i)
        eventually(lambda: all(h == list(range(200)) for h in heard_by(*ears)))
        assert news.publish(200, sure=True).result(30) == 6
        assert all(h[-1] == 200 for h in heard_by(*ears)), "sure: it has been heard"
        # From inside an actor, and after one has left and one is gone.
        ears[1].leave.remote("news").result(30)
        ears[2].kill()
        eventually(lambda: len(covey.topics()["news"]) == 4)
        assert ears[0].say.remote("news", "in").result(30) == 4
        eventually(lambda: heard_by(ears[0], ears[3]) == [[*range(201), "in"]] * 2)
        assert "in" not in heard_by(ears[1])[0]
        ears[1].join.remote("news").result(30)
        # The head tells this driver of it by another way than the answer of `join` comes.
        eventually(lambda: news.publish("back", sure=True).result(30) == 5)
        assert heard_by(ears[1])[0][-1] == "back"
        assert len(covey.topics()["news"]) == 5
        for wrong in (lambda: news.add(ears[0], "nothing"), lambda: news.remove(ears[2]), lambda: news.add(ears[2], "hear")):
            with pytest.raises(covey.errors.NotFound):
                wrong()
        with pytest.raises(covey.errors.InvalidArgument):
            covey.topic("x" * 300).add(ears[0], "hear")


def test_a_driver_listens_and_a_slow_reader_makes_only_the_sure_wait(cluster):
    ticks = covey.topic("ticks")
    with ticks.listen(depth=10) as messages:
        reader = iter(messages)
        for i in range(5):
            ticks.publish(i)
        assert [next(reader) for _ in range(5)] == [0, 1, 2, 3, 4]
        # Nobody reads: the window of the stream and the inbox fill, then the sure publisher waits and loses nothing.
        sent = [ticks.publish(i, sure=True) for i in range(2_000)]
        got = []
        thread = threading.Thread(target=lambda: got.extend(next(reader) for _ in range(2_000)))
        thread.start()
        assert covey.get(sent, timeout=60) == [1] * 2_000
        thread.join(30)
        assert sorted(set(got)) == list(range(2_000))
    eventually(lambda: "ticks" not in covey.topics())


def test_listeners_sleep_die_and_outlive_the_head(nodes):
    nodes.head()
    nodes.worker("a")
    with nodes.connect():
        nodes.live(1)
        topic = covey.topic("deeds")
        topic.add(Ear.at("sleeper"), "hear")
        assert topic.publish("wake", sure=True).result(30) == 1
        mortal = Ear.options(own_process=True).remote()
        topic.add(mortal, "hear")
        assert topic.publish("one", sure=True).result(30) == 2
        with pytest.raises(covey.ActorDied):
            mortal.die.remote().result(30)
        assert topic.publish("two", sure=True).result(30) == 2, "it starts again and listens still"
        assert mortal.all.options(retries=3).remote().result(30)[-1] == "two"
    nodes.kill9("head")
    nodes.head()
    with nodes.connect():
        nodes.live(1)
        assert list(covey.topics()) == ["deeds"] and covey.topics()["deeds"][0][0] == "Ear/sleeper"
        assert covey.topic("deeds").publish("three", sure=True).result(30) == 1
        assert Ear.at("sleeper").all.remote().result(30) == ["wake", "one", "two", "three"]


def test_a_listener_holds_a_number_of_messages(cluster):
    news = covey.topic("depth")
    for wrong in ("100", 1.5, True, [1]):
        with pytest.raises(TypeError, match="option 'depth' takes a number of messages from 1 on, not "):
            news.listen(depth=wrong)
    for wrong in (0, -1, numpy.int64(0)):
        with pytest.raises(ValueError, match="option 'depth' takes a number of messages from 1 on, not "):
            news.listen(depth=wrong)
    for depth in (numpy.int64(2), 2, None):
        with news.listen(depth=depth) as messages:
            assert news.publish("heard").result(30) == 1
            assert next(iter(messages)) == "heard"


@agent
class Newborn:
    """Listens from its constructor on."""

    def __init__(self, *_):
        self.heard = []
        covey.topic("births").join("hear")

    def hear(self, value):
        self.heard.append(value)

    def all(self):
        return self.heard


def test_an_actor_joins_a_topic_in_its_constructor(cluster):
    ears = [Newborn.remote(), Newborn.at("first")]
    assert heard_by(*ears) == [[], []]  # they are made
    births = covey.topic("births")
    eventually(lambda: births.publish("cry", sure=True).result(30) == 2)
    assert all(heard[-1] == "cry" for heard in heard_by(*ears))
    for wrong in (lambda: births.join("hear"), births.leave):
        with pytest.raises(RuntimeError, match="are for actors, in their methods and `__init__`; use add, remove or listen"):
            wrong()
