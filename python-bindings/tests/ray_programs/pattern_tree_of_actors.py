"""Pattern: supervisors that own workers."""

import ray

ray.init(num_cpus=2)


@ray.remote(num_cpus=0)
class Worker:
    def __init__(self, seed):
        self.seed = seed

    def work(self, step):
        return self.seed * 10 + step


@ray.remote(num_cpus=0)
class Supervisor:
    def __init__(self, index, workers):
        self.workers = [Worker.remote(index * workers + i) for i in range(workers)]

    def work(self, step):
        return sum(ray.get([worker.work.remote(step) for worker in self.workers]))


supervisors = [Supervisor.remote(i, 3) for i in range(2)]
for step in range(3):
    assert sum(ray.get([s.work.remote(step) for s in supervisors])) == 150 + 6 * step
