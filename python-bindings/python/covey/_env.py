"""What an agent's processes are started with: variables, a working folder, packages."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import zipfile

from . import errors
from ._current import bridge_call, current_session
from ._narrow import JsonObject

SKIPPED = {".git", ".hg", ".svn", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "node_modules", ".ipynb_checkpoints"}
INHERITED = "COVEY_ENVIRONMENT"
KEYS = ("env_vars", "working_dir", "pip")


class Environment:
    """Prepared once on each node, under the digest of what it is made of."""

    def __init__(self, env_vars: dict[str, str] | None = None, working_dir: str | os.PathLike[str] | None = None, pip: list[str] | None = None):
        if isinstance(pip, str):
            raise TypeError("pip takes a list of packages, like ['requests>=2']")
        self.vars = {str(k): str(v) for k, v in (env_vars or {}).items()}
        self.pip = list(pip or [])
        self.dir, self._zip = None, b""
        if working_dir is not None:
            self._zip = pack(pathlib.Path(working_dir))
            self.dir = hashlib.sha256(self._zip).hexdigest()

    def over(self, base: Environment | None) -> Environment:
        """This one on top of another."""
        if base is None:
            return self
        both = Environment({**base.vars, **self.vars}, None, self.pip or base.pip)
        both.dir, both._zip = (self.dir, self._zip) if self.dir else (base.dir, base._zip)
        return both

    def spec(self) -> JsonObject:
        """As the agent's definition says it; what its code starts in turn is told too, by a variable."""
        said = {k: v for k, v in {"vars": self.vars, "dir": self.dir, "pip": self.pip}.items() if v}
        return {**said, "vars": {**self.vars, INHERITED: json.dumps(said, sort_keys=True)}} if said else {}

    @classmethod
    def inherited(cls) -> Environment | None:
        """Inside an actor's process: what that was started with holds for what its code starts."""
        said = json.loads(os.environ.get(INHERITED) or "{}")
        if not said:
            return None
        made = cls(said.get("vars"), None, said.get("pip"))
        made.dir = said.get("dir")
        return made

    def upload(self) -> None:
        """The zip of the working folder goes to the head, unless it is there."""
        if self.dir is None:
            return
        session = current_session()
        if self.dir in session.uploaded:
            return
        try:
            bridge_call(session.client.put_blob, self.dir, b"")
        except errors.FailedPrecondition:
            bridge_call(session.client.put_blob, self.dir, self._zip)
        session.uploaded.add(self.dir)


def pack(folder: pathlib.Path) -> bytes:
    """A folder as a zip that is the same for the same contents."""
    if not folder.is_dir():
        raise errors.NotFound(f"there is no folder {str(folder)!r} to ship as working_dir")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and not SKIPPED & set(inside.parts):
                entry = zipfile.ZipInfo(str(inside), date_time=(1980, 1, 1, 0, 0, 0))
                entry.external_attr = (path.stat().st_mode & 0o777) << 16
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()
