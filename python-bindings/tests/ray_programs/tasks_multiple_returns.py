"""One task, several results: tuples, generators, and as many as it finds."""

import ray

ray.init(num_cpus=2)


@ray.remote(num_returns=3)
def three():
    return 0, 1, 2


@ray.remote(num_returns=3)
def three_one_by_one():
    for i in range(3):
        yield i


@ray.remote(num_returns="dynamic")
def split(text):
    for word in text.split():
        yield word


@ray.remote
def length(refs):
    return sum(len(ray.get(ref)) for ref in refs)


@ray.remote(num_returns=0)
def nothing():
    return None


a, b, c = three.remote()
assert ray.get([c, a, b]) == [2, 0, 1]
assert ray.get(three_one_by_one.remote()) == [0, 1, 2]
words = split.remote("one two three")
assert [ray.get(ref) for ref in ray.get(words)] == ["one", "two", "three"]
assert ray.get(length.remote(list(ray.get(words)))) == 11
assert nothing.remote() is None
one, other = three.options(num_returns=2).remote()
try:
    ray.get(one)
    raise SystemExit("three values are not two")
except ValueError:
    pass
