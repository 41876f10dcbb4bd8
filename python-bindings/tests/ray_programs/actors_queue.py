"""A queue between producers and consumers."""

import ray
from ray.util.queue import Empty, Full, Queue

ray.init(num_cpus=2)
queue = Queue(maxsize=10)


@ray.remote(num_cpus=0.5)
def produce(queue, items):
    for item in items:
        queue.put(item)


@ray.remote(num_cpus=0.5)
def consume(queue, count):
    return [queue.get(timeout=60) for _ in range(count)]


consumers = [consume.remote(queue, 10) for _ in range(2)]
ray.get([produce.remote(queue, list(range(10))), produce.remote(queue, list(range(10, 20)))])
assert sorted(sum(ray.get(consumers), [])) == list(range(20))

assert queue.empty() and queue.qsize() == 0
queue.put_nowait_batch(list(range(10)))
assert queue.full()
for wrong in (lambda: queue.put(1, block=False), lambda: queue.put(1, timeout=0.1), lambda: queue.put_nowait(1)):
    try:
        wrong()
        raise SystemExit("there is no room")
    except Full:
        pass
assert queue.get_nowait_batch(9) == list(range(9)) and queue.get() == 9
for wrong in (lambda: queue.get(block=False), lambda: queue.get(timeout=0.1), lambda: queue.get_nowait_batch(1)):
    try:
        wrong()
        raise SystemExit("there is nothing")
    except Empty:
        pass
queue.shutdown()
