"""`ray.actor`."""

from ._calls import ActorClass, ActorHandle, ActorMethod
from ._exits import exit_actor

__all__ = ["ActorClass", "ActorHandle", "ActorMethod", "exit_actor"]
