"""Ends of actors: killed from outside, by themselves, in their constructor."""

import ray
from ray.exceptions import RayActorError

ray.init(num_cpus=2)


@ray.remote
class Clerk:
    def __init__(self, fail=False):
        if fail:
            raise RuntimeError("cannot begin")
        self.served = 0

    def serve(self):
        self.served += 1
        return self.served

    def go_home(self):
        ray.actor.exit_actor()


def is_gone(clerk):
    try:
        ray.get(clerk.serve.remote(), timeout=60)
        return False
    except RayActorError:
        return True


killed, tired, broken = Clerk.remote(), Clerk.remote(), Clerk.remote(fail=True)
assert ray.get([killed.serve.remote(), tired.serve.remote()]) == [1, 1]
ray.kill(killed)
assert is_gone(killed)
try:
    ray.get(tired.go_home.remote(), timeout=60)
    raise SystemExit("it went")
except RayActorError:
    pass
assert is_gone(tired)
assert is_gone(broken)
