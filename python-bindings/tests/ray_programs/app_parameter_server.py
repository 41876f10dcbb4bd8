"""A parameter server, synchronous and asynchronous."""

import numpy as np
import ray

ray.init(num_cpus=2)
TARGET = np.arange(8.0)


@ray.remote
class Server:
    def __init__(self):
        self.weights = np.zeros(8)

    def apply(self, *gradients):
        self.weights = self.weights - 0.3 * np.mean(gradients, axis=0)
        return self.weights

    def read(self):
        return self.weights


@ray.remote(num_cpus=0.5)
class Worker:
    def gradient(self, weights):
        return weights - TARGET


server, workers = Server.remote(), [Worker.remote() for _ in range(2)]
weights = server.read.remote()
for _ in range(30):
    weights = server.apply.remote(*[worker.gradient.remote(weights) for worker in workers])
assert np.abs(ray.get(weights) - TARGET).max() < 0.01

server = Server.remote()
weights = server.read.remote()
running = {worker.gradient.remote(weights): worker for worker in workers}
for _ in range(60):
    (ready,), _ = ray.wait(list(running))
    worker = running.pop(ready)
    weights = server.apply.remote(ready)
    running[worker.gradient.remote(weights)] = worker
assert np.abs(ray.get(server.read.remote()) - TARGET).max() < 0.1
