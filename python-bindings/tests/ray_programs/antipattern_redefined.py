"""Anti-pattern: a remote function made anew in a loop; better is one that takes what differs."""

import ray

ray.init(num_cpus=2)
results = []
for i in range(4):

    @ray.remote
    def anew():
        return i

    results.append(anew.remote())
assert ray.get(results) == [0, 1, 2, 3]


@ray.remote
def once(i):
    return i


assert ray.get([once.remote(i) for i in range(4)]) == [0, 1, 2, 3]
