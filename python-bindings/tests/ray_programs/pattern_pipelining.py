"""Pattern: a worker asks for the next piece before it works on this one."""

import ray

ray.init(num_cpus=2)


@ray.remote(num_cpus=0)
class WorkQueue:
    def __init__(self, count):
        self.items = iter(range(count))

    def next_item(self):
        return next(self.items, None)


@ray.remote
class Worker:
    def __init__(self, queue):
        self.queue, self.done = queue, []

    def run(self):
        coming = self.queue.next_item.remote()
        while True:
            item = ray.get(coming)
            if item is None:
                return self.done
            coming = self.queue.next_item.remote()
            self.done.append(item * item)


queue = WorkQueue.remote(20)
workers = [Worker.remote(queue) for _ in range(2)]
assert sorted(sum(ray.get([worker.run.remote() for worker in workers]), [])) == [i * i for i in range(20)]
