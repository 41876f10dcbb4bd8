"""A bench of one side, in a process of its own."""

import json
import subprocess


def run(*command: object) -> dict:
    """Runs `command`; gives what its last line says as JSON, or ends with what went wrong."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=1800)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
