"""Answers that are too large for a message go through a store, and their files go with their reading."""

import asyncio
import os
import pathlib

import numpy as np
import pytest
from conftest import eventually

import covey

BYTES = 40 << 20


@covey.agent(name="large-maker")
class Maker:
    def blob(self, size=BYTES, fill=b"x"):
        return fill * size

    async def array(self, count=BYTES // 8):
        return {"array": np.arange(count, dtype=np.float64), "word": "said"}

    def items(self, count):
        for n in range(count):
            yield bytes([n]) * BYTES

    async def of(self, other):
        return len(await other.blob.remote())

    def sync_of(self, other):
        return len(other.blob.remote().result(60))

    def store(self):
        return os.environ["COVEY_OBJECTS"]


@covey.task
def large(n):
    return bytes([n]) * BYTES


def files(store):
    return [path for path in pathlib.Path(store).rglob("*") if path.is_file() and path.stat().st_size > BYTES]


def test_large_answers_arrive_and_their_files_go(cluster):
    maker = Maker.remote()
    store = maker.store.remote().result(30)
    assert maker.blob.remote().result(60) == b"x" * BYTES
    value = maker.array.remote().result(60)
    assert value["word"] == "said" and value["array"].sum() == np.arange(BYTES // 8, dtype=np.float64).sum()
    value["array"][0] = 7.0
    assert value["array"][0] == 7.0, "it is the reader's own"
    assert [item == bytes([n]) * BYTES for n, item in enumerate(maker.items.remote(3))] == [True] * 3
    assert covey.get([large.remote(n) for n in range(3)], timeout=60) == [bytes([n]) * BYTES for n in range(3)]
    same = [maker.blob.remote() for _ in range(2)]
    assert [len(answer) for answer in covey.get(same, timeout=60)] == [BYTES] * 2, "equal answers are two"
    eventually(lambda: not files(store))
    assert maker.blob.remote(5).result(30) == b"x" * 5


def test_large_answers_are_awaited_and_read_by_actors(cluster):
    maker = Maker.remote()
    store = maker.store.remote().result(30)
    other = Maker.remote()
    assert other.of.remote(maker).result(60) == BYTES
    assert other.sync_of.remote(maker).result(60) == BYTES

    async def drive():
        one, many = await asyncio.gather(maker.array.remote(), gather(maker.items.remote(2)))
        return one["word"], [len(item) for item in many]

    async def gather(stream):
        return [item async for item in stream]

    assert asyncio.run(drive()) == ("said", [BYTES] * 2)
    eventually(lambda: not files(store))


def test_an_answer_of_a_key_is_there_again(cluster):
    maker = Maker.remote()
    keyed = maker.blob.options(key="once")
    assert [len(keyed.remote().result(60)) for _ in range(2)] == [BYTES] * 2


def test_what_nobody_reads_goes_with_the_driver(shared):
    with shared.connect():
        shared.live(1)
        maker = Maker.remote()
        store = maker.store.remote().result(30)
        call = maker.blob.remote()
        eventually(call.done)
        assert files(store)
    eventually(lambda: not files(store))


def test_actors_without_a_driver_give_large_answers(cluster):
    maker = Maker.at("somebody")
    store = maker.store.remote().result(30)
    assert len(maker.blob.remote().result(60)) == BYTES
    eventually(lambda: not files(store))


def test_answers_come_from_another_machine(nodes, monkeypatch):
    nodes.head()
    nodes.env["COVEY_MACHINE"] = "elsewhere"
    nodes.worker("w1")
    with nodes.connect():
        nodes.live(1)
        maker = Maker.remote()
        if any(here for _, here, _ in covey.current().client.stores()):
            pytest.skip("workers do not take the name of a machine from the environment")
        assert maker.blob.remote().result(60) == b"x" * BYTES
        assert maker.array.remote().result(60)["array"][-1] == BYTES // 8 - 1
