"""Actors that exit: one whose owner keeps its state, and one that keeps it in a file and starts again."""

import json
import os
import sys
import tempfile

import ray

ray.init(num_cpus=2)


@ray.remote
class Ledger:
    def __init__(self, entries=()):
        self.entries = list(entries)

    def add(self, entry, crash=False):
        if crash:
            sys.exit(1)
        self.entries.append(entry)

    def state(self):
        return self.entries


class Supervisor:
    def __init__(self):
        self.ledger, self.kept, self.losses = Ledger.remote(), [], 0

    def add(self, entry):
        crash = True
        while True:
            try:
                ray.get(self.ledger.add.remote(entry, crash=crash))
                self.kept = ray.get(self.ledger.state.remote())
                return
            except ray.exceptions.RayActorError:
                self.losses += 1
                self.ledger, crash = Ledger.remote(self.kept), False


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Durable:
    def __init__(self, path):
        self.path, self.state = path, {}
        if os.path.exists(path):
            with open(path) as file:
                self.state = json.load(file)

    def set(self, key, value):
        marker = f"{self.path}-{key}"
        if not os.path.exists(marker):
            open(marker, "w").close()
            sys.exit(1)
        self.state[key] = value
        with open(self.path, "w") as file:
            json.dump(self.state, file)

    def get(self, key):
        return self.state[key]


supervisor = Supervisor()
for entry in "ab":
    supervisor.add(entry)
assert supervisor.kept == ["a", "b"] and supervisor.losses == 2

durable = Durable.remote(os.path.join(tempfile.mkdtemp(), "state.json"))
for i in range(3):
    durable.set.remote(f"key{i}", i)
assert [ray.get(durable.get.remote(f"key{i}")) for i in range(3)] == [0, 1, 2]
