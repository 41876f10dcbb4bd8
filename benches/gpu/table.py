"""`make bench-gpu`: our engine beside transformers on the same card, a Qwen3-0.6B shape with random weights in 16 bits.

    python table.py ENGINE CHECKPOINTS [--device cpu]      (cpu: only to see that the script runs)

ENGINE is the binary `engine` of this folder's crate, built with the feature `cuda`. Every number is the median of three
runs of each side, in turns. The share of the memory's bandwidth is that of reading all weights once a step. Prints
markdown.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from child import run  # noqa: E402

ROUNDS = 3
BATCHES = (1, 16, 64)
PROMPT, NEW = 128, 128


def bandwidth(device: str) -> float:
    """Bytes a second that are read and written when a gigabyte is copied, the best of several."""
    a = torch.zeros(1 << 28, device=device)
    b = torch.empty_like(a)
    best = 0.0
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        b.copy_(a)
        wait(device)
        best = max(best, 2 * a.nbytes / (time.perf_counter() - start))
    return best


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def theirs(model: Qwen3ForCausalLM, device: str, batch: int, new: int) -> float:
    """Tokens a second of greedy decoding, the prompts' time taken off."""
    prompts = torch.randint(0, 150_000, (batch, PROMPT), device=device)
    seconds = []
    for count in (1, new + 1):
        wait(device)
        start = time.perf_counter()
        model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=count, min_new_tokens=count, do_sample=False)
        wait(device)
        seconds.append(time.perf_counter() - start)
    return batch * new / (seconds[1] - seconds[0])


def main() -> None:
    engine, folder = sys.argv[1:3]
    device = "cpu" if "cpu" in sys.argv else "cuda"
    os.environ["COVEY_BENCH_DEVICE"] = device
    new, batches = (NEW, BATCHES) if device == "cuda" else (8, (1, 2))
    config = Qwen3Config(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        intermediate_size=3072, vocab_size=151936, max_position_embeddings=40960, tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).to(device, torch.float16).eval()
    weights = sum(p.nbytes for p in model.parameters())
    roof = bandwidth(device)
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(f"{card}, {roof / 1e9:.0f} GB/s; torch {torch.__version__}; {PROMPT} tokens of prompt, {new} made\n")
    print("| batch | Covey t/s | transformers t/s | ratio | of the bandwidth |")
    print("|---:|---:|---:|---:|---:|", flush=True)
    for batch in batches:
        a, b = [], []
        theirs(model, device, batch, 2)
        for _ in range(ROUNDS):
            a.append(run(engine, Path(folder) / "random-0.6b-f16.gguf", 2, "decode", batch, PROMPT, new)["decode"])
            b.append(theirs(model, device, batch, new))
        x, y = statistics.median(a), statistics.median(b)
        print(f"| {batch} | {x:.0f} | {y:.0f} | {x / y:.2f} × | {x / batch * weights / roof:.0%} |", flush=True)


if __name__ == "__main__":
    main()
