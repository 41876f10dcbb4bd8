"""Submits a script with its folder as a job, leaves, and reads what it printed later, as one does from a laptop."""

import os
import pathlib
import subprocess

import covey

HERE = pathlib.Path(__file__).parent


def run(*command: str) -> str:
    print("$ covey", *command)
    return subprocess.check_output(["covey", *command], cwd=HERE, text=True)


def main(session: covey.Session) -> None:
    # The command line finds the cluster by these, as it does on any other machine.
    os.environ.update(COVEY_ADDRESS=session.address, COVEY_TOKEN=session.token)

    # With --detach it prints the job's id and leaves. The same --id is the same job, however often it is sent.
    command = ["job", "submit", "--working-dir", ".", "--id", "count-1", "--detach", "--", "python", "count.py"]
    job = run(*command).strip()
    print(job)
    assert run(*command).strip() == job

    # `-f` follows until the job is over.
    printed = run("job", "logs", "-f", job)
    print(printed, end="")
    assert printed == "daffodils: 14 words\ntiger: 10 words\n", printed
    assert "completed" in run("job", "status", job)


if __name__ == "__main__":
    with covey.init() as session:
        main(session)
