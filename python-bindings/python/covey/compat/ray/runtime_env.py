"""`ray.runtime_env`."""

from __future__ import annotations

from typing import Any

from ._env import environment


class RuntimeEnv(dict[str, Any]):
    """A `runtime_env` that is looked at when it is made: what Covey does not know is refused here."""

    def __init__(self, **fields: Any):
        super().__init__({name: value for name, value in fields.items() if value is not None})
        environment({name: value for name, value in self.items() if name != "working_dir"})

    def to_dict(self) -> dict[str, Any]:
        return dict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> RuntimeEnv:
        return cls(**fields)


class RuntimeEnvConfig(dict[str, Any]):
    """How an environment is set up, for Ray; Covey looks at none of it."""

    def __init__(self, setup_timeout_seconds: int = 600, eager_install: bool = True, log_files: list[str] | None = None):
        super().__init__(setup_timeout_seconds=setup_timeout_seconds, eager_install=eager_install, log_files=log_files or [])


__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]
