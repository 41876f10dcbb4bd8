"""References inside of values that were put, returned, and kept."""

import ray

ray.init(num_cpus=2)


@ray.remote
def make():
    return [ray.put(i) for i in range(3)]


@ray.remote
class Shelf:
    def __init__(self):
        self.refs = []

    def keep(self, refs):
        self.refs += refs

    def read(self):
        return ray.get(self.refs)


assert ray.get(ray.get(make.remote())) == [0, 1, 2]
box = ray.put({"inner": ray.put("treasure")})
assert ray.get(ray.get(box)["inner"]) == "treasure"
shelf = Shelf.remote()
ray.get(shelf.keep.remote([ray.put("a"), ray.put("b")]))
assert ray.get(shelf.read.remote()) == ["a", "b"]
