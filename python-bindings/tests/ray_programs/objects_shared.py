"""`ray.put`: an array that many tasks read, sent once and never copied for them."""

import numpy as np
import ray

ray.init(num_cpus=2)


@ray.remote
def total(array, part, parts):
    assert not array.flags.writeable
    return float(array[part::parts].sum())


@ray.remote
class Keeper:
    def __init__(self, array):
        self.array = array

    def mean(self):
        return float(self.array.mean())


array = np.arange(1_000_000, dtype=np.float64)
ref = ray.put(array)
assert sum(ray.get([total.remote(ref, i, 4) for i in range(4)])) == array.sum()
keeper = Keeper.remote(ref)
assert ray.get(keeper.mean.remote()) == array.mean()
view = ray.get(ref)
assert (view == array).all()
try:
    view[0] = 1
    raise SystemExit("shared values are read only")
except ValueError:
    pass
mine = view.copy()
mine[0] = 1
for wrong in (ref,):
    try:
        ray.put(wrong)
        raise SystemExit("references are not put")
    except TypeError:
        pass
