"""Names, namespaces, and actors that others find."""

import ray

ray.init(num_cpus=2, namespace="shop")


@ray.remote(num_cpus=0)
class Till:
    def __init__(self):
        self.sum = 0

    def sell(self, price):
        self.sum += price
        return self.sum


@ray.remote
def customer(price):
    return ray.get(ray.get_actor("till").sell.remote(price))


till = Till.options(name="till", lifetime="detached").remote()
assert sorted(ray.get([customer.remote(5) for _ in range(4)])) == [5, 10, 15, 20]
assert ray.get(ray.get_actor("till", namespace="shop").sell.remote(1)) == 21
same = Till.options(name="till", get_if_exists=True).remote()
assert ray.get(same.sell.remote(1)) == 22
assert ray.util.list_named_actors() == ["till"]
try:
    Till.options(name="till").remote()
    raise SystemExit("the name is taken")
except ValueError:
    pass
try:
    ray.get_actor("till", namespace="elsewhere")
    raise SystemExit("another namespace")
except ValueError:
    pass
other = Till.options(name="till", namespace="elsewhere").remote()
assert ray.get(other.sell.remote(1)) == 1
ray.kill(till)
ray.kill(other)
