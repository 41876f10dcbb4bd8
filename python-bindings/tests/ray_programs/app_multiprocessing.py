"""The standard library's pool, over the cluster."""

import os

import ray
from ray.util.multiprocessing import Pool

ray.init(num_cpus=2)


def square(x):
    return x * x


def add(a, b):
    return a + b


def prepare(value):
    os.environ["PREPARED"] = value


def prepared(_):
    return os.environ["PREPARED"]


with Pool(processes=2, initializer=prepare, initargs=("yes",)) as pool:
    assert pool.map(square, range(20)) == [x * x for x in range(20)]
    assert pool.starmap(add, [(1, 2), (3, 4)]) == [3, 7]
    assert list(pool.imap(square, range(5))) == [0, 1, 4, 9, 16]
    assert sorted(pool.imap_unordered(square, range(5))) == [0, 1, 4, 9, 16]
    assert pool.apply(add, (1, 2)) == 3
    result = pool.apply_async(square, (9,))
    assert result.get(timeout=60) == 81 and result.successful()
    assert set(pool.map(prepared, range(4))) == {"yes"}
