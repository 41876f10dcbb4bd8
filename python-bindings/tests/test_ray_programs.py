"""Programs in Ray's words (`ray_programs/`), each unchanged but for its imports; they run the same under Ray itself."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import BIN, ROOT

PROGRAMS = sorted((pathlib.Path(__file__).parent / "ray_programs").glob("*.py"))


def with_our_imports(source):
    """`import ray` and `from ray.x import y` name Covey's module instead; nothing else is changed."""
    source = re.sub(r"^import ray$", "from covey.compat import ray", source, flags=re.M)
    return re.sub(r"^from ray\b", "from covey.compat.ray", source, flags=re.M)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_ray_program_runs_with_its_imports_changed(program, tmp_path):
    changed = with_our_imports(program.read_text())
    lines = zip(program.read_text().splitlines(), changed.splitlines(), strict=True)
    assert all("import" in before for before, after in lines if before != after)
    script = tmp_path / program.name
    script.write_text(changed)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COVEY_", "RAY_"))}
    env |= {"COVEY_BIN": BIN, "PYTHONPATH": str(ROOT / "python-bindings/python")}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]


def test_there_are_thirty_of_them():
    assert len(PROGRAMS) >= 30
