"""`runtime_env` in Covey's words: variables, a working folder, packages."""

from __future__ import annotations

import atexit
import os
import pathlib
import shutil
import tempfile
import types
from typing import Any

from ..._env import SKIPPED
from ..._narrow import is_object

_KNOWN = {"env_vars", "working_dir", "py_modules", "pip", "uv", "excludes", "config"}
_folders: dict[tuple[Any, ...], str] = {}
"""Folders that were put together here, for the life of this process."""


def environment(said: dict[str, Any] | None) -> dict[str, Any]:
    """Options of an agent, or of a driver."""
    if not said:
        return {}
    for key in said:
        if key not in _KNOWN:
            raise ValueError(f"runtime_env {key!r} is not one that Covey knows; known: {', '.join(sorted(_KNOWN))}")
    out: dict[str, Any] = {}
    if said.get("env_vars"):
        for name, value in said["env_vars"].items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise TypeError(f"runtime_env['env_vars'] takes strings, not {name!r}: {value!r}")
        out["env_vars"] = dict(said["env_vars"])
    modules = [_module(m) for m in said.get("py_modules") or ()]
    packages = [*_packages(said.get("pip")), *_packages(said.get("uv")), *(m for m in modules if m.endswith(".whl"))]
    if packages:
        out["pip"] = packages
    folder = _folder(said.get("working_dir"), [m for m in modules if not m.endswith(".whl")], tuple(said.get("excludes") or ()))
    if folder is not None:
        out["working_dir"] = folder
    return out


def _module(module: Any) -> str:
    if isinstance(module, types.ModuleType):
        path = getattr(module, "__path__", None)
        return os.fspath(next(iter(path))) if path else os.fspath(module.__file__ or "")
    return _local(module, "py_modules")


def _local(said: str | os.PathLike[str], key: str) -> str:
    path = os.fspath(said)
    if "://" in path:
        raise ValueError(f"runtime_env[{key!r}] takes a folder of this machine, not {path!r}")
    if not os.path.exists(path):
        raise ValueError(f"runtime_env[{key!r}]: there is no {path!r}")
    return path


def _packages(said: Any) -> list[str]:
    """A list, a file of requirements, or a dict with `packages`."""
    if is_object(said):
        said = said.get("packages")
    if isinstance(said, str):
        lines = (line.split("#")[0].strip() for line in pathlib.Path(said).read_text().splitlines())
        return [line for line in lines if line]
    return list(said or ())


def _folder(working_dir: Any, modules: list[str], excludes: tuple[str, ...]) -> str | None:
    """The working folder, with modules beside what is in it."""
    if working_dir is None and not modules:
        return None
    base = None if working_dir is None else _local(working_dir, "working_dir")
    if base is not None and base.endswith(".zip"):
        raise ValueError("runtime_env['working_dir'] takes a folder, not a zip")
    if not modules and not excludes:
        return base
    key = (base, *modules, None, *excludes)
    made = _folders.get(key)
    if made is None:
        made = _folders[key] = tempfile.mkdtemp(prefix="covey-env-")
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        ignored = shutil.ignore_patterns(*SKIPPED, *(e.rstrip("/").removeprefix("/") for e in excludes))
        if base is not None:
            shutil.copytree(base, made, ignore=ignored, dirs_exist_ok=True)
        for module in modules:
            to = os.path.join(made, os.path.basename(module.rstrip("/")))
            if os.path.isdir(module):
                shutil.copytree(module, to, ignore=ignored, dirs_exist_ok=True)
            else:
                shutil.copy(module, to)
    return made
