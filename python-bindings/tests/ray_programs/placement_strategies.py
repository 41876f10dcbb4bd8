"""Scheduling strategies: spread, a node by its id."""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init(num_cpus=2)


@ray.remote(num_cpus=0.5)
def where():
    return ray.get_runtime_context().get_node_id()


(node,) = [n["NodeID"] for n in ray.nodes() if n["Alive"]]
assert set(ray.get([where.options(scheduling_strategy="SPREAD").remote() for _ in range(4)])) == {node}
assert ray.get(where.options(scheduling_strategy="DEFAULT").remote()) == node
assert ray.get(where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)).remote()) == node
try:
    where.options(scheduling_strategy="EVERYWHERE").remote()
    raise SystemExit("there is no such strategy")
except ValueError:
    pass
