"""`ray._raylet`: the names that programs import from there."""

from ._refs import DynamicObjectRefGenerator, ObjectRef, ObjectRefGenerator

__all__ = ["DynamicObjectRefGenerator", "ObjectRef", "ObjectRefGenerator"]
