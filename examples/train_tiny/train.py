"""Trains the tiny model that ships in `models/tiny`, from nothing but `tasks.py`.

    python examples/train_tiny/train.py --out models/tiny --steps 6000

Needs torch, tokenizers and safetensors (not needed to build, run or test Covey). A Qwen3-shaped decoder of about
one million parameters: grouped-query attention, RMSNorm on queries and keys, SwiGLU, tied embeddings. The matrices
are trained with Muon (orthogonalised momentum; K. Jordan, 2024), embeddings and norms with AdamW; the loss is taken
on the assistant's tokens only. Weights are written as float16 safetensors with Hugging Face's names.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import random
import time

import tasks
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 1024,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_sliding_window": False,
    "torch_dtype": "float16",
    "bos_token_id": None,
    "eos_token_id": 1,
}
SPECIAL = ["<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<tool_call>", "</tool_call>"]
TEMPLATE = (
    "{%- if tools %}{{- '<|system|>Tools:' }}{%- for t in tools %}{{- '\\n' + t.function.name + '(' + "
    "(t.function.parameters.properties | default({}) | list | join(', ')) + ')' }}{%- endfor %}{{- '<|end|>' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|' + m.role + '|>' + m.content + '<|end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def make_tokenizer() -> Tokenizer:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]| ?[A-Za-z]+|\s|[^A-Za-z0-9\s]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    text = (m["content"] for _ in range(40_000) for m in tasks.example(rng))
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(text, trainer)
    return tok


class Norm(torch.nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, CONFIG["rms_norm_eps"])


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        h, d = CONFIG["hidden_size"], CONFIG["head_dim"]
        self.q_proj = torch.nn.Linear(h, CONFIG["num_attention_heads"] * d, bias=False)
        self.k_proj = torch.nn.Linear(h, CONFIG["num_key_value_heads"] * d, bias=False)
        self.v_proj = torch.nn.Linear(h, CONFIG["num_key_value_heads"] * d, bias=False)
        self.o_proj = torch.nn.Linear(CONFIG["num_attention_heads"] * d, h, bias=False)
        self.q_norm, self.k_norm = Norm(d), Norm(d)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        d = CONFIG["head_dim"]
        q = self.q_norm(self.q_proj(x).view(b, t, -1, d)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(b, t, -1, d)).transpose(1, 2)
        v = self.v_proj(x).view(b, t, -1, d).transpose(1, 2)
        groups = q.shape[1] // k.shape[1]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        h, f = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj = torch.nn.Linear(h, f, bias=False)
        self.up_proj = torch.nn.Linear(h, f, bias=False)
        self.down_proj = torch.nn.Linear(f, h, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mlp()
        self.input_layernorm, self.post_attention_layernorm = Norm(CONFIG["hidden_size"]), Norm(CONFIG["hidden_size"])

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        self.layers = torch.nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = Norm(CONFIG["hidden_size"])
        torch.nn.init.normal_(self.embed_tokens.weight, std=0.02)
        d = CONFIG["head_dim"]
        freq = CONFIG["rope_theta"] ** (-torch.arange(0, d, 2) / d)
        angle = torch.arange(CONFIG["max_position_embeddings"])[:, None] * freq[None, :]
        self.cos, self.sin = angle.cos(), angle.sin()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.embed_tokens.weight.T


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are orthogonalised by five Newton-Schulz steps."""

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 0.05)
                g = p.grad.lerp(m, 0.95)
                x = g / (g.norm() + 1e-7)
                flip = x.shape[0] > x.shape[1]
                x = x.T if flip else x
                for _ in range(5):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
                x = x.T if flip else x
                p.mul_(1 - group["lr"] * 0.01)
                p.add_(x, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def batch(tok: Tokenizer, rng: random.Random, size: int, pool: list) -> tuple[torch.Tensor, torch.Tensor]:
    """`size` examples of like length: ids [n, t] and targets [n, t], -100 where no loss is taken."""
    if len(pool) < size:
        fresh = []
        for _ in range(size * 16):
            messages = tasks.example(rng)
            prompt = tok.encode(tasks.render(messages, prompt_only=True)).ids
            answer = tok.encode(messages[-1]["content"] + "<|end|>").ids
            fresh.append((prompt, answer))
        fresh.sort(key=lambda e: len(e[0]) + len(e[1]))
        groups = [fresh[i : i + size] for i in range(0, len(fresh), size)]
        rng.shuffle(groups)
        pool.extend(e for g in groups for e in g)
    rows = [pool.pop() for _ in range(size)]
    width = max(len(p) + len(a) for p, a in rows)
    ids, want = torch.zeros(size, width, dtype=torch.long), torch.full((size, width), -100)
    for i, (p, a) in enumerate(rows):
        ids[i, : len(p) + len(a)] = torch.tensor(p + a)
        want[i, len(p) - 1 : len(p) + len(a) - 1] = torch.tensor(a)
    return ids, want


@torch.no_grad()
def accuracy(model: Model, tok: Tokenizer, count: int, seed: int) -> dict[str, float]:
    """Share of held-out examples of each kind whose greedy answer is exact."""
    out = {}
    for kind in tasks.KINDS:
        rng, right = random.Random(seed), 0
        for _ in range(count):
            messages = tasks.example(rng, kind)
            prompt = tok.encode(tasks.render(messages, prompt_only=True)).ids
            answer = tok.encode(messages[-1]["content"] + "<|end|>").ids
            # Teacher forcing finds the same first mistake as greedy decoding would.
            hidden = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
            right += bool((model.logits(hidden).argmax(-1) == torch.tensor(answer)).all())
        out[kind] = right / count
    return out


def save(model: Model, tok: Tokenizer, out: pathlib.Path, scores: dict[str, float], steps: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{k}": v.detach().to(torch.float16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    saved = json.loads(tok.to_str())
    for token in saved["added_tokens"]:
        # Tool calls are part of the answer's text; the other markers are not.
        token["special"] = "tool_call" not in token["content"]
    (out / "tokenizer.json").write_text(json.dumps(saved, ensure_ascii=False, indent=1))
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}, indent=2) + "\n")
    (out / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "model_max_length": 1024, "chat_template": TEMPLATE}, indent=2) + "\n"
    )
    (out / "accuracy.json").write_text(json.dumps({"steps": steps, "held_out_exact": scores}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("models/tiny"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tok = make_tokenizer()
    model = Model()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon, adam = Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    rng, pool, begin, seen = random.Random(2), [], time.time(), 0
    for step in range(args.steps):
        # Linear warm-up, flat, then a linear fall over the last half.
        scale = min(1.0, (step + 1) / 100, 2.0 * (args.steps - step) / args.steps)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = 0.02 * scale, 3e-3 * scale
        ids, want = batch(tok, rng, args.batch, pool)
        hidden = model(ids)
        keep = want != -100
        loss = F.cross_entropy(model.logits(hidden[keep]), want[keep])
        muon.zero_grad(), adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(), adam.step()
        seen += ids.numel()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f} {seen / (time.time() - begin):.0f} tokens/s", flush=True)
        if step % 1000 == 999 or step == args.steps - 1:
            scores = accuracy(model, tok, 100, 1)
            print(f"step {step + 1} " + " ".join(f"{k}={v:.2f}" for k, v in scores.items()), flush=True)
            save(model, tok, args.out, scores, step + 1)
    rounded = Model()
    rounded.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})
    scores = accuracy(rounded, tok, 500, 1)
    save(model, tok, args.out, scores, args.steps)
    print(json.dumps(scores), flush=True)
    if math.isnan(loss.item()):
        raise SystemExit("training diverged")


if __name__ == "__main__":
    main()
