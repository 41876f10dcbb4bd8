"""`runtime_env`: variables, a folder, modules; for all of a driver, for one task, for one actor."""

import os
import pathlib
import tempfile

import ray

folder = pathlib.Path(tempfile.mkdtemp())
(folder / "data.txt").write_text("inside")
(folder / "beside.py").write_text("NAME = 'beside'\n")
module = pathlib.Path(tempfile.mkdtemp()) / "shipped_module"
module.mkdir()
(module / "__init__.py").write_text("def answer():\n    return 42\n")

ray.init(
    num_cpus=2,
    runtime_env={"working_dir": str(folder), "py_modules": [str(module)], "env_vars": {"COLOR": "blue", "SIZE": "1"}},
)


@ray.remote
def look():
    import beside

    return os.environ.get("COLOR"), os.environ.get("SIZE"), open("data.txt").read(), beside.NAME


@ray.remote
def nested():
    return ray.get(look.remote())


@ray.remote
class Actor:
    def color(self):
        return os.environ.get("COLOR")


@ray.remote
def uses_module():
    import shipped_module

    return shipped_module.answer()


assert ray.get(look.remote()) == ("blue", "1", "inside", "beside")
assert ray.get(nested.remote()) == ("blue", "1", "inside", "beside"), "what a task starts has its environment"
red = {"env_vars": {"COLOR": "red"}}
assert ray.get(look.options(runtime_env=red).remote())[:2] == ("red", "1")
assert ray.get(Actor.options(runtime_env=red).remote().color.remote()) == "red"
assert ray.get(uses_module.remote()) == 42
