"""`ActorPool`: a fixed number of actors for a list of work."""

import ray
from ray.util import ActorPool

ray.init(num_cpus=2)


@ray.remote(num_cpus=0)
class Worker:
    def double(self, value):
        return 2 * value


pool = ActorPool([Worker.remote() for _ in range(3)])
assert list(pool.map(lambda actor, value: actor.double.remote(value), range(7))) == [0, 2, 4, 6, 8, 10, 12]
assert sorted(pool.map_unordered(lambda actor, value: actor.double.remote(value), range(4))) == [0, 2, 4, 6]
pool.submit(lambda actor, value: actor.double.remote(value), 21)
assert pool.has_next() and pool.has_free()
assert pool.get_next() == 42 and not pool.has_next()
spare = pool.pop_idle()
assert spare is not None
pool.push(spare)
pool.push(Worker.remote())
for value in range(5):
    pool.submit(lambda actor, value: actor.double.remote(value), value)
found = []
while pool.has_next():
    found.append(pool.get_next_unordered(timeout=60))
assert sorted(found) == [0, 2, 4, 6, 8]
