"""What is tried again: crashes by themselves, exceptions where the task says so."""

import os
import tempfile

import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

ray.init(num_cpus=2)


def count(path):
    with open(path, "a") as file:
        file.write("x")
    return os.path.getsize(path)


@ray.remote(max_retries=2)
def crashes_once(path):
    if count(path) == 1:
        os._exit(1)
    return "alive"


@ray.remote(max_retries=0)
def crashes():
    os._exit(1)


@ray.remote(max_retries=3, retry_exceptions=[ConnectionError])
def flaky(path):
    tries = count(path)
    if tries < 3:
        raise ConnectionError("the line is bad")
    return tries


@ray.remote(max_retries=3, retry_exceptions=[ConnectionError])
def wrong(path):
    count(path)
    raise ValueError("not worth another try")


folder = tempfile.mkdtemp()
assert ray.get(crashes_once.remote(f"{folder}/a")) == "alive"
try:
    ray.get(crashes.remote())
    raise SystemExit("it crashed")
except WorkerCrashedError:
    pass
assert ray.get(flaky.remote(f"{folder}/b")) == 3
try:
    ray.get(wrong.remote(f"{folder}/c"))
    raise SystemExit("it raised")
except RayTaskError as error:
    assert isinstance(error, ValueError)
assert os.path.getsize(f"{folder}/c") == 1
