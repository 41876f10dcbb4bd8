"""Makes the checkpoints and golden outputs beside this file. Needs torch, transformers, tokenizers, safetensors.

    python crates/inference/tests/goldens/make.py [NAME ...]

Tiny random-weight models of each served family, seeded, with the logits and greedy tokens that `transformers` computes
in float32; and held-out examples of the shipped tiny model. The tests need only the files.
"""

import json
import pathlib
import random
import sys

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[3]
SMALL = dict(vocab_size=96, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80, max_position_embeddings=256)
PROMPTS = [[5, 9, 33, 2], list(range(3, 60)), [7] * 20 + [11, 13]]


def save(name, model, config):
    out = HERE / name
    out.mkdir(exist_ok=True)
    model.eval().save_pretrained(out)
    words = {f"w{i}": i for i in range(config.vocab_size)}
    tok = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.save(str(out / "tokenizer.json"))
    return out


def decoder(name, config, seed=1):
    if len(sys.argv) > 1 and name not in sys.argv[1:]:
        return
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    for p in model.parameters():
        # Larger than the usual init, so that a wrong rotation or norm shows in the logits.
        torch.nn.init.normal_(p, std=0.25) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    out = save(name, model, config)
    cases = []
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            logits = model(ids).logits[0, -1].tolist()
            greedy = []
            for _ in range(12):
                nxt = int(model(torch.tensor([prompt + greedy])).logits[0, -1].argmax())
                greedy.append(nxt)
            cases.append({"prompt": prompt, "logits": [round(x, 6) for x in logits], "greedy": greedy})
    (out / "golden.json").write_text(json.dumps({"transformers": transformers.__version__, "cases": cases}))


def encoder(name, config, classes):
    if len(sys.argv) > 1 and name not in sys.argv[1:]:
        return
    torch.manual_seed(1)
    model = classes(config).float()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    out = save(name, model, config)
    texts = ["w4 w2 w3", "w9", " ".join(f"w{i}" for i in range(10, 50))]
    vectors = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([[int(w[1:]) for w in text.split()]])
            v = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].mean(0)
            vectors.append([round(x, 6) for x in (v / v.norm()).tolist()])
    (out / "golden.json").write_text(json.dumps({"transformers": transformers.__version__, "texts": texts, "vectors": vectors}))


def judge(name, config, classes, seed=1):
    """A cross-encoder, with the scores of pairs in (0, 1)."""
    if len(sys.argv) > 1 and name not in sys.argv[1:]:
        return
    torch.manual_seed(seed)
    model = classes(config).float().eval()
    for p in model.parameters():
        # The row of the score larger still, so that the first token's states, which differ little, do not all mean the same.
        std = 2.5 if p.shape[0] == 1 else 0.35
        torch.nn.init.normal_(p, std=std) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    out = save(name, model, config)
    tok = Tokenizer.from_file(str(out / "tokenizer.json"))
    tok.post_processor = processors.TemplateProcessing(
        single="w1 $A w2", pair="w1 $A w2 $B:1 w2:1", special_tokens=[("w1", 1), ("w2", 2)]
    )
    tok.save(str(out / "tokenizer.json"))
    query, texts = "w4 w2 w3", ["w9", "w5 w6", " ".join(f"w{i}" for i in range(10, 50)), "w4 w2 w3"]
    scores = []
    with torch.no_grad():
        for text in texts:
            pair = tok.encode(query, text)
            kinds = {"token_type_ids": torch.tensor([pair.type_ids])} if config.type_vocab_size > 1 else {}
            logit = model(torch.tensor([pair.ids]), attention_mask=torch.ones(1, len(pair.ids)), **kinds).logits[0, 0]
            scores.append(round(float(torch.sigmoid(logit)), 6))
    (out / "golden.json").write_text(json.dumps({"transformers": transformers.__version__, "query": query, "texts": texts, "scores": scores}))


def whisper():
    """A Whisper of random weights, the spectrum of two tones, and what it hears in them."""
    if len(sys.argv) > 1 and "whisper" not in sys.argv[1:]:
        return
    words = [f"w{i}" for i in range(96)]
    marks = ["endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    ids = {f"<|{m}|>": 96 + i for i, m in enumerate(marks)}
    vocab = 106 + 1501
    config = transformers.WhisperConfig(
        vocab_size=vocab, num_mel_bins=80, d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=192, decoder_ffn_dim=192, max_source_positions=100, max_target_positions=64,
        bos_token_id=96, eos_token_id=96, pad_token_id=96, decoder_start_token_id=97, suppress_tokens=[], begin_suppress_tokens=[3],
    )  # fmt: skip
    torch.manual_seed(6)
    model = transformers.WhisperForConditionalGeneration(config).float().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=96, eos_token_id=96, pad_token_id=96, decoder_start_token_id=97, begin_suppress_tokens=[3], is_multilingual=True,
        lang_to_id={"<|en|>": 98, "<|de|>": 99}, task_to_id={"translate": 100, "transcribe": 101}, no_timestamps_token_id=105,
        max_initial_timestamp_index=50, max_length=64,
    )  # fmt: skip
    out = HERE / "whisper"
    out.mkdir(exist_ok=True)
    model.save_pretrained(out)
    tok = Tokenizer(models.WordLevel({**{w: i for i, w in enumerate(words)}, **ids}, unk_token="w0"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.add_special_tokens(list(ids))
    tok.save(str(out / "tokenizer.json"))
    t = torch.arange(48_000, dtype=torch.float64) / 16_000
    tone = lambda hz: torch.sin(2 * torch.pi * hz * t * (1 + 0.2 * t))  # noqa: E731
    sound = (0.4 * tone(220.0) + 0.2 * tone(1730.0)).float().numpy()
    mel = torch.tensor(transformers.WhisperFeatureExtractor(feature_size=80)(sound, sampling_rate=16_000).input_features[0])
    told = {}
    with torch.no_grad():
        features = mel[None, :, :200]
        for key, times in (("plain", False), ("times", True)):
            made = model.generate(features, language="de", task="transcribe", return_timestamps=times, max_new_tokens=32, do_sample=False)
            made = made["sequences"] if isinstance(made, dict) else made
            tokens = made[0].tolist()
            prompt = 4 if not times else 3
            tokens = tokens[prompt:] if tokens[0] == 97 else tokens
            told[key] = [x for x in tokens if x != 96]
    flat = mel.reshape(-1)[::97].tolist()
    golden = {"transformers": transformers.__version__, "mel": [round(x, 5) for x in flat], **told}
    (out / "golden.json").write_text(json.dumps(golden))


def paligemma():
    """A PaliGemma of random weights, a picture of 28 by 28 pixels, and what it says of it."""
    if len(sys.argv) > 1 and "paligemma" not in sys.argv[1:]:
        return
    text = dict(model_type="gemma", vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=128)
    vision = dict(model_type="siglip_vision_model", hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, projection_dim=32)
    config = transformers.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=32, hidden_size=32, image_token_id=95, bos_token_id=2, eos_token_id=1, pad_token_id=0)
    torch.manual_seed(2)
    model = transformers.PaliGemmaForConditionalGeneration(config).float().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.2, 0.8)
    out = save("paligemma", model, config.text_config)
    config.save_pretrained(out)
    # Already of the model's size: how others shrink pictures is not the question.
    x = torch.arange(28 * 28 * 3).reshape(28, 28, 3)
    picture = ((x * 7) % 256).to(torch.uint8)
    pixels = (picture.permute(2, 0, 1)[None].float() / 127.5) - 1
    question = [2, 5, 9, 33]
    ids = torch.tensor([[95] * 4 + question])
    greedy = []
    with torch.no_grad():
        for _ in range(12):
            row = torch.cat([ids, torch.tensor([greedy], dtype=torch.long)], 1)
            kinds = torch.tensor([[0] * ids.shape[1] + [1] * len(greedy)])
            told = model(input_ids=row, pixel_values=pixels, attention_mask=torch.ones_like(row), token_type_ids=kinds)
            if not greedy:
                first = told.logits[0, -1].tolist()
            greedy.append(int(told.logits[0, -1].argmax()))
    golden = {"transformers": transformers.__version__, "question": question, "logits": [round(v, 5) for v in first], "greedy": greedy}
    (out / "golden.json").write_text(json.dumps(golden))


def held_out():
    sys.path.insert(0, str(ROOT / "examples/train_tiny"))
    import tasks

    out = {}
    for kind in ("copy", "lookup", "tool"):
        rng = random.Random(101)
        out[kind] = [tasks.example(rng, kind) for _ in range(100)]
    (HERE / "tiny_held_out.json").write_text(json.dumps(out))


if __name__ == "__main__":
    llama3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    decoder("llama", transformers.LlamaConfig(**SMALL, num_key_value_heads=2, rope_parameters=llama3, tie_word_embeddings=False))
    decoder("qwen2", transformers.Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True))
    decoder("qwen3", transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True))
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    decoder("qwen3_yarn", transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16, rope_parameters=yarn, tie_word_embeddings=True))
    # A window shorter than the longest prompt.
    decoder("mistral", transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=24, tie_word_embeddings=False))
    smol = {**SMALL, "num_hidden_layers": 4}
    decoder("smollm3", transformers.SmolLM3Config(**smol, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0))
    moe = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True)
    # A seed where no two experts are within rounding of 16-bit keys and values of each other.
    decoder("qwen3_moe", transformers.Qwen3MoeConfig(**SMALL, **moe, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False), seed=3)
    # As GGUF knows it: every sixth layer sees all, scores are scaled by the size of a head.
    gemma = {**SMALL, "num_hidden_layers": 7}
    kinds = [*["sliding_attention"] * 5, "full_attention", "sliding_attention"]
    decoder("gemma3", transformers.Gemma3TextConfig(**gemma, num_key_value_heads=2, head_dim=16, sliding_window=24, layer_types=kinds, query_pre_attn_scalar=16, pad_token_id=0), seed=4)
    gemma = {**SMALL, "num_hidden_layers": 3}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    decoder("gemma3_other", transformers.Gemma3TextConfig(**gemma, num_key_value_heads=2, head_dim=16, sliding_window=24, layer_types=kinds, query_pre_attn_scalar=20, pad_token_id=0))
    T = transformers
    encoder("bert", T.BertConfig(**SMALL), lambda c: T.BertModel(c, add_pooling_layer=False))
    encoder("xlm_roberta", T.XLMRobertaConfig(**SMALL, pad_token_id=1), lambda c: T.XLMRobertaModel(c, add_pooling_layer=False))
    distil = dict(vocab_size=96, dim=48, n_layers=2, n_heads=4, hidden_dim=80, max_position_embeddings=256)
    encoder("distilbert", T.DistilBertConfig(**distil), T.DistilBertModel)
    # Three layers, the middle ones local with a window of 16.
    modern = dict(SMALL, num_hidden_layers=3, global_attn_every_n_layers=3, local_attention=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    encoder("modernbert", T.ModernBertConfig(**modern), T.ModernBertModel)
    if len(sys.argv) == 1:
        held_out()
    judge("bert_ranker", T.BertConfig(**SMALL, num_labels=1), T.BertForSequenceClassification)
    judge("roberta_ranker", T.XLMRobertaConfig(**SMALL, num_labels=1, pad_token_id=0, type_vocab_size=1), T.XLMRobertaForSequenceClassification, seed=3)
    whisper()
    paligemma()
