"""Anti-pattern: a task that puts its result and returns the reference; better to return the value."""

import ray

ray.init(num_cpus=2)


@ray.remote
def puts(value):
    return ray.put(value)


@ray.remote
def returns(value):
    return value


@ray.remote
def puts_two():
    return ray.put("left"), ray.put("right")


@ray.remote(num_returns=2)
def returns_two():
    return "left", "right"


@ray.remote
def puts_some(count):
    return [ray.put(i) for i in range(count)]


@ray.remote
def yields_some(count):
    yield from range(count)


@ray.remote
class Shelf:
    def put(self, value):
        return ray.put(value)

    def give(self, value):
        return value


inner = ray.get(puts.remote(7))
assert isinstance(inner, ray.ObjectRef) and ray.get(inner) == ray.get(returns.remote(7)) == 7
assert ray.get(list(ray.get(puts_two.remote()))) == ray.get(returns_two.remote()) == ["left", "right"]
assert ray.get(ray.get(puts_some.remote(4))) == [ray.get(ref) for ref in yields_some.remote(4)] == [0, 1, 2, 3]
shelf = Shelf.remote()
assert ray.get(ray.get(shelf.put.remote("jam"))) == ray.get(shelf.give.remote("jam")) == "jam"
