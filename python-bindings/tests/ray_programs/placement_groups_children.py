"""Placement groups: children that are captured, the group one is in, groups that cannot be had, and removed ones."""

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import get_current_placement_group, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(num_cpus=2)
group = placement_group([{"CPU": 2}])
ray.get(group.ready(), timeout=60)
assert get_current_placement_group() is None


@ray.remote(num_cpus=1)
def child():
    return get_current_placement_group() is not None


@ray.remote(num_cpus=1)
def parent():
    return ray.get(child.remote())


@ray.remote(num_cpus=1)
def parent_of_outsider():
    outside = PlacementGroupSchedulingStrategy(placement_group=None)
    try:
        ray.get(child.options(scheduling_strategy=outside).remote(), timeout=1)
        return "ran"
    except GetTimeoutError:
        return "no room outside of the group"


capturing = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_capture_child_tasks=True)
assert ray.get(parent.options(scheduling_strategy=capturing).remote(), timeout=60) is True
assert ray.get(parent_of_outsider.options(scheduling_strategy=capturing).remote(), timeout=60) == "no room outside of the group"

impossible = placement_group([{"CPU": 1}, {"GPU": 5}])
assert not impossible.wait(1)
ready, unready = ray.wait([impossible.ready()], timeout=0.5)
assert not ready and len(unready) == 1
try:
    ray.get(impossible.ready(), timeout=0.5)
    raise SystemExit("nobody has five cards")
except GetTimeoutError:
    pass
assert placement_group_table(impossible)["state"] == "PENDING"
remove_placement_group(impossible)

remove_placement_group(group)
try:
    ray.get(child.options(scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=group)).remote(), timeout=60)
    raise SystemExit("the group is gone")
except RayError:
    pass
assert placement_group_table(group)["state"] == "REMOVED"
