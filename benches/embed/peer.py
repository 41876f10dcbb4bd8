"""sentence-transformers' side of `make bench-embed`: MODEL_FOLDER THREADS BATCH SENTENCES.json VECTORS.f32; prints JSON."""

import json
import sys
import time

import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    folder, threads, batch, sentences, out = sys.argv[1:6]
    torch.set_num_threads(int(threads))
    texts = json.load(open(sentences, encoding="utf-8"))
    model = SentenceTransformer(folder, device="cpu")
    model.encode(texts[:64], batch_size=int(batch))
    start = time.perf_counter()
    vectors = model.encode(texts, batch_size=int(batch), normalize_embeddings=True)
    seconds = time.perf_counter() - start
    vectors.astype("float32").tofile(out)
    print(json.dumps({"rate": len(texts) / seconds}))


if __name__ == "__main__":
    main()
