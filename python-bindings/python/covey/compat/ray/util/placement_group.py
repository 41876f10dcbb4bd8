"""`ray.util.placement_group`."""

from .._placement import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

__all__ = [
    "PlacementGroup", "get_current_placement_group", "get_placement_group", "placement_group", "placement_group_table",
    "remove_placement_group",
]  # fmt: skip
