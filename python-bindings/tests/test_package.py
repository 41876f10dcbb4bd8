"""What `covey` shows of itself."""

import re
import subprocess
import types

import pytest
from conftest import BIN, ROOT

import covey


def test_the_version_is_that_of_the_command():
    (said,) = re.findall(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[:1]
    assert covey.__version__ == said
    assert subprocess.run([BIN, "--version"], capture_output=True, text=True).stdout.split() == ["covey", said]


def test_no_private_name_is_public():
    modules = {"compat", "errors", "llm"}
    shown = {name for name, value in vars(covey).items() if not name.startswith("_")}
    assert shown - set(covey.__all__) <= modules
    assert all(hasattr(covey, name) for name in covey.__all__)
    for name in shown - modules:
        assert not isinstance(getattr(covey, name), types.ModuleType), name
    assert all(getattr(covey, name).__module__.startswith("covey") for name in shown if hasattr(getattr(covey, name), "__module__"))


@covey.agent
class Counts:
    def up_to(self, n):
        yield from range(n)

    async def never(self):
        import asyncio

        yield 1
        await asyncio.sleep(3600)

    def breaks(self):
        yield 1
        raise ValueError("half way")


def test_a_stream_has_a_result(cluster):
    one = Counts.remote()
    stream = one.up_to.remote(1000)
    assert stream.result() == list(range(1000)) == stream.result(timeout=0)
    waits = Counts.options(name="waits").remote().never.remote()
    with pytest.raises(covey.DeadlineExceeded, match="the work goes on"):
        waits.result(timeout=1)
    waits.cancel()
    with pytest.raises(covey.Cancelled):
        waits.result(timeout=30)
    with pytest.raises(ValueError, match="half way"):
        one.breaks.remote().result()
    assert one.up_to.remote(3).result(timeout=30) == [0, 1, 2]
