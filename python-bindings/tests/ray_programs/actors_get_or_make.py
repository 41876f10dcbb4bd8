"""A named actor that is made when it is first asked for, before anything else was said to Ray."""

import ray


@ray.remote
class Counter:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count


def counter():
    try:
        return ray.get_actor("counter")
    except ValueError:
        return Counter.options(name="counter").remote()


first = counter()
assert ray.get(first.add.remote()) == 1
assert ray.get(counter().add.remote()) == 2
assert ray.util.list_named_actors() == ["counter"]
