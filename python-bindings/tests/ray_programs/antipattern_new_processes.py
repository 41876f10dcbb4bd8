"""Anti-pattern: processes that a program forks itself; better tasks, or processes that begin anew."""

import multiprocessing
import operator
import subprocess
import sys

import ray


@ray.remote
def spawns(values):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(operator.neg, values)


@ray.remote
def runs(text):
    return subprocess.run([sys.executable, "-c", f"print({text!r})"], capture_output=True, text=True, check=True).stdout.strip()


@ray.remote
def negate(value):
    return -value


if __name__ == "__main__":
    ray.init(num_cpus=2)
    assert ray.get(spawns.remote([1, 2])) == [-1, -2]
    assert ray.get(runs.remote("hello")) == "hello"
    assert ray.get([negate.remote(value) for value in (1, 2)]) == [-1, -2]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(operator.neg, [3]) == [-3]
    assert ray.get(negate.remote(4)) == -4
