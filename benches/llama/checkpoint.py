"""Writes a random-weight checkpoint in the shape of Qwen3-0.6B as GGUF, in F16, BF16, Q8_0 and Q4_K_M.

Random weights cost what trained ones cost: time depends on shapes and formats alone. The tokenizer is bytes and made-up
words, enough for both sides to load the file.

    python checkpoint.py FOLDER [FORMAT…]
"""

import sys
from pathlib import Path

import gguf
import numpy as np

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, CONTEXT = 28, 1024, 16, 8, 128, 3072, 151936, 40960
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_names() -> list[str]:
    """GPT-2's printable names of the 256 bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, extra = {}, 0
    for b in range(256):
        if b in shown:
            names[b] = chr(b)
        else:
            names[b], extra = chr(256 + extra), extra + 1
    return [names[b] for b in range(256)]


def write(path: Path) -> None:
    rng = np.random.default_rng(20261121)
    writer = gguf.GGUFWriter(str(path), "qwen3")
    writer.add_name("random-qwen3-0.6b")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    names = byte_names()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [f"{names[ord(' ')]}w{i or ''}" for i in range(VOCAB - len(names) - len(special))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(names + words + special)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([normal] * (len(names) + len(words)) + [control] * len(special))
    writer.add_token_merges([f"{names[ord(' ')]} w"])
    writer.add_eos_token_id(VOCAB - 1)
    writer.add_bos_token_id(VOCAB - 3)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)

    def matrix(name: str, rows: int, cols: int) -> None:
        spread = np.float32(cols**-0.5)
        writer.add_tensor(name, (rng.standard_normal((rows, cols), dtype=np.float32) * spread).astype(np.float16))

    def ones(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, dtype=np.float32))

    matrix("token_embd.weight", VOCAB, HIDDEN)
    ones("output_norm.weight", HIDDEN)
    for i in range(LAYERS):
        ones(f"blk.{i}.attn_norm.weight", HIDDEN)
        ones(f"blk.{i}.ffn_norm.weight", HIDDEN)
        ones(f"blk.{i}.attn_q_norm.weight", HEAD_DIM)
        ones(f"blk.{i}.attn_k_norm.weight", HEAD_DIM)
        matrix(f"blk.{i}.attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{i}.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{i}.attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{i}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        matrix(f"blk.{i}.ffn_gate.weight", FFN, HIDDEN)
        matrix(f"blk.{i}.ffn_up.weight", FFN, HIDDEN)
        matrix(f"blk.{i}.ffn_down.weight", HIDDEN, FFN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, kind: str) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    params.nthread = 0
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        raise SystemExit(f"failed to quantize to {target}")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    names = sys.argv[2:] or ("f16", "bf16", "q8_0", "q4_k_m")
    files = {name: folder / f"random-0.6b-{name}.gguf" for name in names}
    for name, path in files.items():
        if path.exists():
            continue
        part = path.with_suffix(".part")
        if name == "f16":
            write(part)
        else:
            quantize(folder / "random-0.6b-f16.gguf", part, name)
        part.rename(path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
