"""Placement groups: room held for a gang, used by index, given back."""

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(num_cpus=4)


@ray.remote(num_cpus=1)
class Member:
    def node(self):
        return ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=1)
def task():
    return "ran"


group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK", name="gang")
ray.get(group.ready(), timeout=60)
assert group.bundle_count == 2 and group.bundle_specs == [{"CPU": 1}, {"CPU": 1}]
assert ray.available_resources()["CPU"] == 2
members = [
    Member.options(scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=i)).remote()
    for i in range(2)
]
assert len(set(ray.get([member.node.remote() for member in members], timeout=60))) == 1
assert placement_group_table(group)["state"] == "CREATED"
other = placement_group([{"CPU": 2}])
assert other.wait(30)
assert ray.get(task.options(scheduling_strategy=PlacementGroupSchedulingStrategy(other)).remote(), timeout=60) == "ran"
large = placement_group([{"CPU": 3}])
assert not large.wait(1)
remove_placement_group(other)
remove_placement_group(group)
assert large.wait(60)
try:
    ray.get(members[0].node.remote(), timeout=60)
    raise SystemExit("its bundle is gone, and it with it")
except ray.exceptions.RayActorError:
    pass
try:
    placement_group([])
    raise SystemExit("a group holds something")
except ValueError:
    pass
