"""A durable task outlives what runs it: here its worker is killed in mid-task by kill -9, and then the head."""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator

import covey
from covey import Actor, agent


@agent
class Author(Actor):
    """Writes a report, chapter by chapter."""

    @covey.method
    async def write(self, chapters: int) -> AsyncIterator[str]:
        for chapter in range(1, chapters + 1):
            await asyncio.sleep(0.2)  # stands for the work
            yield f"chapter {chapter}\n"


def start_head(port: str = "0") -> subprocess.Popen[str]:
    head = subprocess.Popen(["covey", "head", "--port", port], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert head.stdout
    head.stdout.readline()  # "covey head on 127.0.0.1:…": it takes work from now on
    return head


def start_worker() -> subprocess.Popen[str]:
    # The token goes by the environment: every user of this machine can read a command line.
    environment = {**os.environ, "COVEY_JOIN": output("token")}
    return subprocess.Popen(["covey", "worker"], env=environment, stderr=subprocess.DEVNULL, text=True)


def output(*command: str) -> str:
    return subprocess.check_output(["covey", *command], text=True).strip()


def kill_9(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def chapters_written(task: covey.Task[str], number: int, after: int = 0) -> int:
    """Waits until one attempt has written so many chapters; gives the place in the task's log, to read on from there."""
    written = 0
    for event in task.events(after=after):
        if event.type == "step_reset":
            print("its worker was lost: the task begins again on another one")
            written = 0
        elif event.type == "part_delta":
            written += 1
        if written == number:
            return event.number
    raise AssertionError("the task ended before that")


def main() -> None:
    head, worker = start_head(), start_worker()
    address, key = output("token", "--address"), output("token", "--admin")
    try:
        with covey.connect(address, key):
            # When `submit` returns, the task is on the head's disk; covey.get_task(task.id) finds it from any program.
            task = Author.write.submit(10)
            place = chapters_written(task, 3)
            print("three chapters are written: kill -9 of the worker")
            kill_9(worker)
            worker = start_worker()
            chapters_written(task, 3, after=place)
            print("three chapters are written: kill -9 of the head")
            kill_9(head)
            head = start_head(port=address.rpartition(":")[2])

            report = task.result(timeout=60)
            print(f"completed at attempt {task.info().attempt}:\n{report}", end="")
            assert report == "".join(f"chapter {n}\n" for n in range(1, 11))
            assert task.info().attempt == 2, "the head's death costs no attempt: the worker goes on meanwhile"
    finally:
        for process in (worker, head):
            process.terminate()
            process.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["COVEY_HOME"] = home  # nothing of this touches another cluster
        main()
