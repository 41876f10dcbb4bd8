"""Agents in files: a prompt whose model calls a Python agent and a server of the Model Context Protocol (MCP)."""

import os
import pathlib
import subprocess
import tempfile

import covey

HERE = pathlib.Path(__file__).parent


def ask(guide: covey.NamedAgent, text: str) -> list[str]:
    """Names of the tools that were called for an answer."""
    print(f"> {text}")
    task, called = guide.submit(text), list[str]()
    # The log of a task holds the answer, and how it came about.
    for event in task.events():
        if event.type == "tool_call_opened":
            called.append(event.data["name"])
        elif event.type == "tool_call_ready":
            print(f"  the model calls {called[-1]} with {event.data['args']}")
        elif event.type == "tool_call_done":
            print(f"  and is told {event.data['outcome']['content']}")
    # The tiny model has not learnt to put what a tool says into words; task.result() is where others do.
    assert task.state() == "completed"
    return called


def output(*command: str) -> str:
    return subprocess.check_output(["covey", *command], text=True).strip()


def main() -> None:
    # Every *.toml of the folder becomes an agent. The MCP server is started where `covey up` is: in this folder.
    cluster = subprocess.Popen(
        ["covey", "up", "--port", "0", "--agents", "agents"], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert cluster.stdout
        cluster.stdout.readline()  # "covey head on 127.0.0.1:…": it can be asked from now on
        with covey.connect(output("token", "--address"), output("token", "--admin")):
            guide = covey.NamedAgent("guide")
            assert ask(guide, "weather in Oslo") == ["weather"]
            assert ask(guide, "search for amber river") == ["search"]
    finally:
        cluster.terminate()
        cluster.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["COVEY_HOME"] = home  # nothing of this touches another cluster
        main()
