"""Classes, closures and one's own ways to travel."""

import threading

import ray

ray.init(num_cpus=2)


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y


class Connection:
    """Has a lock, which cannot travel; it is made anew there."""

    def __init__(self, address):
        self.address, self.lock = address, threading.Lock()

    def __reduce__(self):
        return Connection, (self.address,)


class Foreign:
    def __init__(self, value):
        self.value, self.lock = value, threading.Lock()


@ray.remote
def flip(point):
    return Point(point.y, point.x)


@ray.remote
def address(connection):
    with connection.lock:
        return connection.address


@ray.remote
def value(foreign):
    return foreign.value


flipped = ray.get(flip.remote(Point(1, 2)))
assert (flipped.x, flipped.y) == (2, 1)
assert ray.get(address.remote(Connection("here"))) == "here"
ray.util.register_serializer(Foreign, serializer=lambda f: f.value, deserializer=lambda v: Foreign(v))
assert ray.get(value.remote(Foreign(7))) == 7
ray.util.deregister_serializer(Foreign)
times = 3
triple = ray.remote(lambda x: x * times)
assert ray.get(triple.remote(4)) == 12
