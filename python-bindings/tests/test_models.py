"""Models as their operators meet them: loaded, unloaded, added, moved, measured, and their workers killed."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import ROOT, eventually
from openai import BadRequestError, OpenAI, RateLimitError

import covey


def memory(node):
    """Names of the models in a worker's memory."""
    return {m["name"] for n in covey.status()["nodes"] if n["name"] == node for m in n["models"] if m["loaded"]}


def client(nodes):
    return OpenAI(base_url=f"http://{nodes.keys['address']}/v1", api_key=nodes.keys["admin_key"], max_retries=0)


def test_models_are_added_loaded_measured_and_unloaded(nodes, tmp_path):
    nodes.head()
    nodes.worker("w1", "--models", str(nodes.home / "models"))
    nodes.worker("w2")
    nodes.connect()
    nodes.live(2)
    # Out of a Hugging Face cache, while the workers run. Only the one that looks into the folder serves it.
    cache = tmp_path / "hub/models--acme--small/snapshots/abc"
    shutil.copytree(ROOT / "models/tiny", cache)
    nodes.env["HF_HUB_CACHE"] = str(tmp_path / "hub")
    assert "acme/small" in nodes.cli("model", "pull-from-cache", "acme/none").stderr
    pulled = nodes.cli("model", "pull-from-cache", "acme/small")
    assert pulled.returncode == 0, pulled.stderr
    serving = lambda: [n["name"] for n in covey.status()["nodes"] for m in n["models"] if m["name"] == "small"]  # noqa: E731
    assert eventually(serving) == ["w1"]
    assert covey.llm.complete([{"role": "user", "content": "Repeat: sun moon"}], model="small") == "sun moon"
    eventually(lambda: memory("w1") == {"small"})
    # Two replicas of the other, by order.
    loaded = nodes.cli("model", "load", "tiny", "--replicas", "2")
    assert loaded.returncode == 0, loaded.stderr
    eventually(lambda: memory("w1") == {"small", "tiny"} and memory("w2") == {"tiny"})
    assert "3" in nodes.cli("model", "load", "tiny", "--replicas", "3").stderr
    assert "none" in nodes.cli("model", "load", "none").stderr
    assert "loaded" in nodes.cli("model", "ls").stdout
    assert nodes.cli("model", "unload", "tiny", "--on", "w1").returncode == 0
    eventually(lambda: memory("w1") == {"small"} and memory("w2") == {"tiny"})
    table = nodes.cli("bench", "model", "tiny", "--at-once", "1,3", "--prompt", "64", "--shared", "48", "--tokens", "16")
    assert table.returncode == 0, table.stderr
    rows = [line for line in table.stdout.splitlines() if line.startswith("| 1 |") or line.startswith("| 3 |")]
    assert len(rows) == 2 and "from the prefix cache" in table.stdout, table.stdout
    page = httpx.get(f"http://{nodes.keys['address']}/metrics", headers={"Authorization": f"Bearer {nodes.keys['admin_key']}"}).text
    made = next(line for line in page.splitlines() if line.startswith("covey_model_tokens_total") and 'kind="made"' in line and 'model="tiny"' in line)
    assert float(made.split()[-1]) >= 16 * 17
    assert 'covey_model_first_token_seconds_bucket{node="w2",model="tiny",le="+Inf"}' in page


def test_speech_becomes_text_in_every_format(nodes):
    import io
    import math
    import struct
    import wave

    nodes.head()
    nodes.worker("w1", "--models", str(ROOT / "crates/inference/tests/goldens"))
    nodes.connect()
    nodes.live(1)
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(22050)
        sound.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(i * i / 3e5))) for i in range(88200)))
    speech = ("speech.wav", file.getvalue())
    hear = client(nodes).audio.transcriptions
    # This one has random weights: what it hears means nothing, but it hears the same each time.
    whole = hear.create(model="whisper", file=speech, response_format="verbose_json", language="de")
    assert whole.language == "de" and abs(whole.duration - 4) < 0.05
    assert all(0 <= s.start <= s.end <= 4.05 for s in whole.segments)
    plain = hear.create(model="whisper", file=speech, language="de")
    assert plain.text == whole.text == hear.create(model="whisper", file=speech, response_format="text", language="de").strip()
    srt = hear.create(model="whisper", file=speech, response_format="srt", language="de")
    assert srt.count("-->") == len(whole.segments)
    assert hear.create(model="whisper", file=speech, response_format="vtt", language="de").startswith("WEBVTT")
    events = list(hear.create(model="whisper", file=speech, stream=True, language="de"))
    assert events[-1].type == "transcript.text.done" and events[-1].text == whole.text
    assert client(nodes).audio.translations.create(model="whisper", file=speech).text is not None
    for wrong, why in [
        (dict(file=("x.wav", b"nothing")), "failed to read the sound"),
        (dict(language="xx"), "xx"),
        (dict(response_format="pdf"), "pdf"),
        (dict(model="tiny"), "hears nothing"),
    ]:
        with pytest.raises(BadRequestError, match=why):
            hear.create(**{**dict(model="whisper", file=speech), **wrong})


def png(side=28):
    """A picture without a library: rows of pixels, packed as PNG wants them."""
    import struct
    import zlib

    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    rows = b"".join(b"\0" + bytes((x * y) % 256 for x in range(side * 3)) for y in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_model_that_sees_answers_about_pictures(nodes):
    import base64

    nodes.head()
    nodes.worker("w1", "--models", str(ROOT / "crates/inference/tests/goldens"))
    nodes.connect()
    nodes.live(1)
    picture = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    ask = lambda url, model="paligemma", **more: client(nodes).chat.completions.create(  # noqa: E731
        model=model, max_tokens=8, **more,
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "w5 w9"}]}],
    )  # fmt: skip
    whole = ask(picture).choices[0].message.content
    assert whole and "".join(c.choices[0].delta.content or "" for c in ask(picture, stream=True)) == whole
    told = [{"role": "user", "content": [{"type": "input_image", "image_url": picture, "detail": "auto"}, {"type": "input_text", "text": "w5 w9"}]}]
    assert client(nodes).responses.create(model="paligemma", input=told, max_output_tokens=8).output_text == whole
    for url, model, why in [
        ("http://127.0.0.1:1/x.png", "paligemma", "none is fetched"),
        ("data:image/png;base64,bm90aGluZw==", "paligemma", "failed to read the picture"),
        (picture, "tiny", "sees no pictures"),
    ]:
        with pytest.raises(BadRequestError, match=why):
            ask(url, model)


def test_memory_for_models_is_bounded(nodes):
    nodes.head()
    nodes.worker("w1", "--model-memory-mib", "1")
    nodes.connect()
    nodes.live(1)
    with pytest.raises(covey.errors.CoveyError, match="model-memory-mib"):
        covey.llm.complete("x", model="tiny")


def test_a_full_queue_says_so(nodes):
    nodes.head()
    nodes.worker("w1", "--model-running", "1", "--model-queue", "1")
    nodes.connect()
    nodes.live(1)
    api = client(nodes)
    covey.llm.complete("x", model="tiny")

    def ask(_):
        try:
            return api.completions.create(model="tiny", prompt="sun", max_tokens=400, extra_body={"ignore_eos": True})
        except RateLimitError as error:
            return error

    # One is made, one waits, and the rest is told at once when to come again.
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    refused = [a for a in answers if isinstance(a, RateLimitError)]
    assert 1 <= len(refused) <= 14, answers
    assert all(e.response.headers["retry-after"] == "1" and "queue is full" in e.message for e in refused)


def test_answers_go_on_when_their_worker_is_killed(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    api = client(nodes)
    words = "sun moon star river"
    asked = [
        dict(
            messages=[{"role": "user", "content": f"Repeat: {words} {i}"}], max_tokens=800, seed=i, temperature=0.9 if i % 2 else 0.0,
            extra_body={"ignore_eos": True, "guided_regex": "[a-z ]{700,900}"} if i % 4 == 3 else {"ignore_eos": True},
        )
        for i in range(24)
    ]  # fmt: skip
    ask = lambda kwargs, **more: api.chat.completions.create(model="tiny", **kwargs, **more)  # noqa: E731
    whole = [ask(kwargs).choices[0].message.content for kwargs in asked]
    nodes.worker("w2", "--cpus", "1")
    nodes.live(2)
    # Whichever worker has them, it is gone in the middle; the other one goes on with all of them.
    texts = [""] * len(asked)
    ends = [None] * len(asked)
    begun = threading.Barrier(len(asked) + 1)

    def read(i):
        stream = ask(asked[i], stream=True)
        first = True
        for chunk in stream:
            texts[i] += chunk.choices[0].delta.content or ""
            ends[i] = chunk.choices[0].finish_reason or ends[i]
            if first:
                first = False
                begun.wait(60)

    readers = [threading.Thread(target=read, args=(i,)) for i in range(len(asked))]
    for reader in readers:
        reader.start()
    begun.wait(60)
    nodes.kill9("w1")
    for reader in readers:
        reader.join(120)
    assert texts == whole, "nothing is repeated, nothing is missing"
    assert all(ends)
    log = (nodes.home / "head.log").read_text()
    assert log.count("an answer goes on elsewhere") > 0, "the worker was killed too late to show anything"
