"""Anti-pattern: references that a program pickles itself; better as arguments and results, which Ray looks through."""

import pickle

import ray
from ray import cloudpickle

ray.init(num_cpus=2)


@ray.remote
def reads(data):
    return ray.get(pickle.loads(data))


@ray.remote
def reads_inside(box):
    return ray.get(box["ref"])


ref = ray.put({"a": 1})
assert ray.get(reads.remote(cloudpickle.dumps(ref))) == {"a": 1}
assert ray.get(cloudpickle.loads(cloudpickle.dumps([ref]))[0]) == {"a": 1}
assert ray.get(reads_inside.remote({"ref": ref})) == {"a": 1}
