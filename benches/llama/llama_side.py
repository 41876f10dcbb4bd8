"""llama.cpp's side of `make bench-llama`, by its own batch API (what llama-server calls), without HTTP.

    python llama_side.py MODEL THREADS decode BATCH PROMPT NEW     tokens/s of a prompt each and of greedy decoding
    python llama_side.py MODEL THREADS prefill LENGTH              tokens/s of one prompt
    python llama_side.py MODEL THREADS swarm AGENTS SYSTEM OWN NEW SHARED   a whole job; SHARED 1 copies the prefix by hand

Prints one JSON object.
"""

import ctypes
import json
import sys
import time

import llama_cpp as ll
import numpy as np

UBATCH = 512


class Peer:
    def __init__(self, path: str, threads: int, sequences: int, context: int, shared: bool = False) -> None:
        quiet = ll.llama_log_callback(lambda level, text, data: None)
        self.quiet = quiet
        ll.llama_log_set(quiet, ctypes.c_void_p(0))
        ll.llama_backend_init()
        params = ll.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = ll.llama_model_load_from_file(path.encode(), params)
        params = ll.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = 2048
        params.n_ubatch = UBATCH
        params.n_seq_max = sequences
        params.n_threads = threads
        params.n_threads_batch = threads
        # One buffer for all sequences lets them share cells, and makes each look at the cells of all: only where they do.
        params.kv_unified = shared
        self.context = ll.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("failed to make a context")
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.batch = ll.llama_batch_init(2048, 0, sequences)
        self.memory = ll.llama_get_memory(self.context)

    def feed(self, tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """Decodes (token, position, sequence, wants logits); gives the greedy tokens of those that want."""
        out = []
        for start in range(0, len(tokens), 2048):
            part = tokens[start : start + 2048]
            batch = self.batch
            batch.n_tokens = len(part)
            for i, (token, position, sequence, wants) in enumerate(part):
                batch.token[i] = token
                batch.pos[i] = position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = wants
            if ll.llama_decode(self.context, batch) != 0:
                raise SystemExit("llama_decode failed")
            for i, (_, _, _, wants) in enumerate(part):
                if wants:
                    logits = ll.llama_get_logits_ith(self.context, i)
                    out.append(int(np.argmax(np.ctypeslib.as_array(logits, (self.vocab,)))))
        return out

    def clear(self) -> None:
        ll.llama_memory_clear(self.memory, True)


def prompt(seed: int, length: int, vocab: int) -> list[int]:
    return [(seed * 7919 + i * 104729) % (vocab - 1000) for i in range(length)]


def decode(peer: Peer, batch: int, length: int, new: int) -> dict:
    peer.clear()
    start = time.perf_counter()
    next_tokens = []
    for s in range(batch):
        tokens = prompt(s + 1, length, peer.vocab)
        next_tokens += peer.feed([(t, i, s, i == length - 1) for i, t in enumerate(tokens)])
    middle = time.perf_counter()
    for step in range(new):
        next_tokens = peer.feed([(t, length + step, s, True) for s, t in enumerate(next_tokens)])
    end = time.perf_counter()
    return {"prefill": batch * length / (middle - start), "decode": batch * new / (end - middle)}


def prefill(peer: Peer, length: int) -> dict:
    peer.clear()
    tokens = prompt(1, length, peer.vocab)
    start = time.perf_counter()
    peer.feed([(t, i, 0, i == length - 1) for i, t in enumerate(tokens)])
    return {"prefill": length / (time.perf_counter() - start)}


def swarm(peer: Peer, agents: int, system: int, own: int, new: int, shared: bool) -> dict:
    peer.clear()
    start = time.perf_counter()
    common = prompt(0, system, peer.vocab)
    tokens = []
    if shared:
        peer.feed([(t, i, 0, False) for i, t in enumerate(common)])
        for s in range(1, agents):
            ll.llama_memory_seq_cp(peer.memory, 0, s, 0, system)
    for s in range(agents):
        if not shared:
            tokens += [(t, i, s, False) for i, t in enumerate(common)]
        mine = prompt(s + 1, own, peer.vocab)
        tokens += [(t, system + i, s, i == own - 1) for i, t in enumerate(mine)]
    next_tokens = peer.feed(tokens)
    prefilled = time.perf_counter()
    for step in range(new - 1):
        next_tokens = peer.feed([(t, system + own + step, s, True) for s, t in enumerate(next_tokens)])
    end = time.perf_counter()
    return {"seconds": end - start, "prefill_seconds": prefilled - start}


def main() -> None:
    path, threads, job = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    numbers = [int(x) for x in sys.argv[4:]]
    if job == "decode":
        batch, length, new = numbers
        peer = Peer(path, threads, batch, batch * (length + new + 1))
        decode(peer, batch, min(length, 16), 2)
        result = decode(peer, batch, length, new)
    elif job == "prefill":
        peer = Peer(path, threads, 1, numbers[0] + 1)
        prefill(peer, 64)
        result = prefill(peer, numbers[0])
    else:
        agents, system, own, new, shared = numbers
        cells = system + agents * (own + new) if shared else agents * (system + own + new)
        peer = Peer(path, threads, agents, cells + 256, bool(shared))
        prefill(peer, 64)
        result = swarm(peer, agents, system, own, new, bool(shared))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
