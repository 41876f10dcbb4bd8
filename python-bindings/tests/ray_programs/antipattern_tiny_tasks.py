"""Anti-pattern: a task for each tiny thing; better is a task for many."""

import ray

ray.init(num_cpus=2)


@ray.remote
def double(number):
    return 2 * number


@ray.remote
def double_many(numbers):
    return [2 * number for number in numbers]


numbers = list(range(200))
tiny = ray.get([double.remote(n) for n in numbers])
batches = [numbers[i : i + 50] for i in range(0, len(numbers), 50)]
batched = sum(ray.get([double_many.remote(batch) for batch in batches]), [])
assert tiny == batched == [2 * n for n in numbers]
