"""`make bench-llama`: our engine beside llama.cpp, same weights, threads, prompts and tokens, in turns.

    python table.py ENGINE PEER_PYTHON CHECKPOINTS [--rounds 5]

ENGINE is the binary `engine` of this folder's crate, PEER_PYTHON a Python with llama-cpp-python and gguf. Every number is
the median of several runs of each side, taken in turns, since the machine may be shared. Prints markdown.
"""

import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from child import run  # noqa: E402

ROUNDS = 5
FORMATS = ("q8_0", "q4_k_m", "f16", "bf16")
BATCHES = (1, 4, 8, 16)
PROMPT, NEW, PREFILL = 128, 64, 512
AGENTS, SYSTEM, OWN, SWARM_NEW = 64, 1024, 64, 64


def main() -> None:
    engine, peer, folder = sys.argv[1:4]
    rounds = int(sys.argv[sys.argv.index("--rounds") + 1]) if "--rounds" in sys.argv else ROUNDS
    threads = len(os.sched_getaffinity(0))
    version = subprocess.run([peer, "-c", "import llama_cpp; print(llama_cpp.__version__)"], capture_output=True, text=True)
    models = {f: Path(folder) / f"random-0.6b-{f}.gguf" for f in FORMATS}

    def ours(model: Path, *job: object) -> dict:
        return run(engine, model, threads, *job)

    def theirs(model: Path, *job: object) -> dict:
        return run(peer, HERE / "llama_side.py", model, threads, *job)

    def both(model: Path, *job: object) -> tuple[list[dict], list[dict]]:
        a, b = [], []
        for _ in range(rounds):
            a.append(ours(model, *job))
            b.append(theirs(model, *job))
        return a, b

    def middle(results: list[dict], key: str) -> float:
        return statistics.median(r[key] for r in results)

    print(f"{platform.machine()}, {threads} threads, load average {os.getloadavg()[0]:.1f}; ", end="")
    print(f"llama-cpp-python {version.stdout.strip()}; medians of {rounds}, in turns\n")
    roofs = {f: ours(models[f], "roof") for f in FORMATS}
    print("| weights | job | Covey t/s | llama.cpp t/s | ratio | of the roof |")
    print("|---|---|---:|---:|---:|---:|", flush=True)
    for f, model in models.items():
        roof = roofs[f]
        compute = roof["int8"] if f.startswith("q") else roof["bf16"] if f == "bf16" else roof["f32"]

        def limit(rows: int) -> float:
            """Tokens a second that memory or arithmetic allow for steps of `rows` tokens."""
            return rows / max(roof["step_bytes"] / roof["bandwidth"], rows * roof["products"] / compute)

        a, b = both(model, "prefill", PREFILL)
        x, y = middle(a, "prefill"), middle(b, "prefill")
        print(f"| {f} | prefill {PREFILL} | {x:.0f} | {y:.0f} | {x / y:.2f} × | {x / limit(PREFILL):.0%} |", flush=True)
        for batch in BATCHES:
            a, b = both(model, "decode", batch, PROMPT, NEW)
            x, y = middle(a, "decode"), middle(b, "decode")
            print(f"| {f} | decode, batch {batch} | {x:.0f} | {y:.0f} | {x / y:.2f} × | {x / limit(batch):.0%} |", flush=True)
    print()
    print(f"Swarm: {AGENTS} agents, {SYSTEM} tokens shared, {OWN} own, {SWARM_NEW} made; seconds for the whole job.\n")
    print("| weights | Covey | llama.cpp, every agent's prompt computed | ratio | llama.cpp, prefix shared by hand | ratio |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for f in ("q8_0", "q4_k_m"):
        job = ("swarm", AGENTS, SYSTEM, OWN, SWARM_NEW)
        x = statistics.median(ours(models[f], *job)["seconds"] for _ in range(3))
        shared = theirs(models[f], *job, 1)["seconds"]
        whole = theirs(models[f], *job, 0)["seconds"]
        print(f"| {f} | {x:.1f} | {whole:.0f} | {whole / x:.1f} × | {shared:.0f} | {shared / x:.1f} × |", flush=True)
    some = roofs["q8_0"]
    print(
        f"\nThe roof, measured in the same run: {some['bandwidth'] / 1e9:.1f} GB/s read, {some['int8'] / 1e9:.0f} G products/s"
        f" of 8 bits, {some['bf16'] / 1e9:.0f} of brain floats, {some['f32'] / 1e9:.0f} of f32."
    )


if __name__ == "__main__":
    main()
