"""How long a head takes to its first answer, and what it holds, with many tasks in its store.

    cargo build --release -p covey-store --example fill
    python benches/start.py 1000000 100000
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
BIN = os.environ.get("COVEY_BIN", str(ROOT / ".venv/bin/covey"))
FILL = os.environ.get("COVEY_FILL", str(ROOT / "target/release/examples/fill"))


def rss_mb(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024


def main(ended, unfinished):
    home = pathlib.Path(tempfile.mkdtemp(prefix="covey-start-"))
    try:
        begin = time.monotonic()
        subprocess.run([FILL, str(home / "head"), str(ended), str(unfinished)], check=True)
        size = sum(f.stat().st_size for f in (home / "head").iterdir()) / 1e6
        print(f"{ended} ended and {unfinished} unfinished tasks: {size:.0f} MB, written in {time.monotonic() - begin:.0f} s")
        for _ in range(3):
            credentials = home / "credentials.json"
            before = credentials.stat().st_mtime_ns if credentials.exists() else 0
            begin = time.monotonic()
            with open(home / "head.log", "ab") as log:
                env = {**os.environ, "COVEY_HOME": str(home)}
                head = subprocess.Popen([BIN, "head", "--port", "0"], env=env, stdout=log, stderr=log)
            while True:
                try:
                    if credentials.stat().st_mtime_ns != before:
                        keys = json.loads(credentials.read_text())
                        request = urllib.request.Request(
                            f"http://{keys['address']}/v1/cluster", headers={"Authorization": f"Bearer {keys['admin_key']}"}
                        )
                        with urllib.request.urlopen(request) as answer:
                            tasks = json.load(answer)["tasks"]
                        break
                except (OSError, ValueError):
                    pass
                if head.poll() is not None:
                    sys.exit(f"the head ended: {(home / 'head.log').read_text()}")
                time.sleep(0.005)
            first = time.monotonic() - begin
            time.sleep(5)
            print(f"first answer after {first:.2f} s, RSS {rss_mb(head.pid):.0f} MB, {tasks}")
            head.kill()
            head.wait()
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main(*(int(n) for n in sys.argv[1:3]))
