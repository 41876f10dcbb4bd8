"""What is refused where it is written: arguments that do not fit, direct calls, unknown options and methods."""

import ray

ray.init(num_cpus=2)


@ray.remote
def scale(value, *, by=2):
    return value * by


@ray.remote
class Gauge:
    def __init__(self, unit):
        self.unit = unit

    def read(self, digits=1):
        return f"{1.0:.{digits}f}{self.unit}"


gauge = Gauge.remote("m")


def refused(call, kinds):
    try:
        call()
    except kinds:
        return True
    return False


assert refused(lambda: scale.remote(), TypeError)
assert refused(lambda: scale.remote(1, 2), TypeError)
assert refused(lambda: scale.remote(1, times=2), TypeError)
assert refused(lambda: Gauge.remote(), TypeError)
assert refused(lambda: gauge.read.remote(1, 2), TypeError)
assert refused(lambda: scale(1), TypeError)
assert refused(lambda: Gauge("m"), TypeError)
assert refused(lambda: gauge.read(), TypeError)
assert refused(lambda: gauge.write.remote(), AttributeError)
assert refused(lambda: scale.options(num_cpu=1).remote(1), ValueError)
assert refused(lambda: ray.get(7), ValueError)
assert refused(lambda: ray.wait(scale.remote(1)), TypeError)
assert ray.get([scale.remote(3), scale.remote(ray.put(3), by=3)]) == [6, 9]
assert ray.get([gauge.read.remote(), gauge.read.remote(digits=2)]) == ["1.0m", "1.00m"]
