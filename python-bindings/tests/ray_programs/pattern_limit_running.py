"""Pattern: resources as a bound on how many run at once."""

import os
import tempfile
import time

import ray

ray.init(num_cpus=4)
folder = tempfile.mkdtemp()


@ray.remote(num_cpus=2)
def heavy(i):
    mine = os.path.join(folder, str(i))
    open(mine, "w").close()
    time.sleep(0.2)
    most = len(os.listdir(folder))
    os.remove(mine)
    return most


assert max(ray.get([heavy.remote(i) for i in range(8)])) <= 2
