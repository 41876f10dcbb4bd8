"""Errors of remote code: caught by their own class, by Ray's, with their cause, through tasks that depend on them."""

import ray
from ray.exceptions import RayError, RayTaskError

ray.init(num_cpus=2)


class Refused(Exception):
    def __init__(self, code):
        super().__init__(f"refused with {code}")
        self.code = code


@ray.remote
def fail(kind):
    if kind == "own":
        raise Refused(7)
    raise {"value": ValueError, "key": KeyError, "os": OSError}[kind]("as asked")


@ray.remote
def use(value):
    return value


@ray.remote
def catches():
    try:
        ray.get(fail.remote("value"))
    except ValueError as error:
        return isinstance(error, RayTaskError)


def raised(ref):
    try:
        ray.get(ref)
    except Exception as error:
        return error
    raise SystemExit("it raises")


for kind, cls in (("value", ValueError), ("key", KeyError), ("os", OSError), ("own", Refused)):
    error = raised(fail.remote(kind))
    assert isinstance(error, cls) and isinstance(error, RayTaskError) and isinstance(error, RayError), (kind, type(error))
    assert isinstance(error.cause, cls)
    assert isinstance(raised(use.remote(fail.remote(kind))), cls), "what depends on it fails as it did"
assert raised(fail.remote("own")).cause.code == 7
assert "as asked" in str(raised(fail.remote("value")))
assert ray.get(catches.remote()) is True
