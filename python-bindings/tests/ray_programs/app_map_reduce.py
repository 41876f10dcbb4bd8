"""Counting words: map tasks with several results, reduce tasks over them."""

import collections

import ray

ray.init(num_cpus=2)
TEXTS = ["a rose is a rose", "is a rose", "a dog is no rose"]
REDUCERS = 3


@ray.remote(num_returns=REDUCERS)
def split(text):
    parts = [collections.Counter() for _ in range(REDUCERS)]
    for word in text.split():
        parts[len(word) % REDUCERS][word] += 1
    return parts


@ray.remote
def merge(*parts):
    return sum(parts, collections.Counter())


mapped = [split.remote(text) for text in TEXTS]
reduced = ray.get([merge.remote(*(parts[i] for parts in mapped)) for i in range(REDUCERS)])
assert sum(reduced, collections.Counter()) == collections.Counter(" ".join(TEXTS).split())
