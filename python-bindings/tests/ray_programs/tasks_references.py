"""References as arguments: at the top they arrive as values, inside lists and dicts as references."""

import ray

ray.init(num_cpus=2)


@ray.remote
def one():
    return 1


@ray.remote
def plain(value):
    assert isinstance(value, int)
    return value + 1


@ray.remote
def inside(values, named):
    assert all(isinstance(value, ray.ObjectRef) for value in values)
    return sum(ray.get(values)) + ray.get(named["x"])


@ray.remote
def chain(ref):
    return [plain.remote(ref)]


ref = one.remote()
assert ray.get(plain.remote(ref)) == 2
assert ray.get(plain.remote(plain.remote(plain.remote(ref)))) == 4
assert ray.get(inside.remote([ref, ref], {"x": plain.remote(ref)})) == 4
(inner,) = ray.get(chain.remote(ref))
assert ray.get(inner) == 2
assert {ref: "kept"}[ref] == "kept" and ref in [inner, ref] and ref != inner
