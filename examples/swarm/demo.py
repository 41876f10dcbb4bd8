"""The main job, end to end, on real input: `make demo`, or `python examples/swarm/demo.py [FOLDER]`.

Starts a head and two workers as separate processes, reads a folder of documents with a swarm of Python agents whose
chunks are embedded by a real model on the workers, kills one worker in the middle, and then asks the same cluster
through the official A2A client and the openai client. Ends by itself; exit code 0 means that everything held.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import TypedDict, cast

import covey
from covey import Context, agent

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUESTIONS = [
    "What happens when a worker dies while it runs a task?",
    "How are events of a task numbered?",
    "Where are the credentials kept, and who can read them?",
    "Which model families can be served?",
    "How does the scheduler choose a node?",
]
SUFFIXES = {".md", ".rs", ".py", ".toml", ".proto", ".txt", ".rst", ".html", ".json"}
DOCUMENTS_MAX, CHUNKS_MAX, WORDS = 48, 12, 90


class Summary(TypedDict):
    """What `Reader` says of a document."""

    document: str
    chunks: int
    tokens: int


class Passage(TypedDict):
    """The best passage of a document for a question."""

    question: int
    document: str
    score: float
    passage: str


@agent(concurrency=2, pool=6)
class Reader:
    """Reads one document: splits it, has its chunks embedded, and finds the best passage for each question."""

    async def read(self, name: str, text: str, questions: list[list[float]], ctx: Context):
        words = text.split()
        chunks = [" ".join(words[i : i + WORDS]) for i in range(0, len(words), WORDS)][:CHUNKS_MAX]
        vectors = await ctx.embed(chunks) if chunks else []
        yield {"document": name, "chunks": len(chunks), "tokens": ctx.tokens["input"]}
        for number, question in enumerate(questions):
            scored = [(sum(a * b for a, b in zip(question, v)), i) for i, v in enumerate(vectors)]
            if scored:
                score, best = max(scored)
                yield {"question": number, "document": name, "score": score, "passage": chunks[best]}


def librarian(passages: list[tuple[str, str]], vectors: bytes, dims: int):
    """An agent that has the best passages inside it; they travel with its code."""

    @agent(name="librarian", concurrency=4)
    class Librarian:
        """Answers questions about the documents that the swarm has read, passage by passage."""

        def __init__(self):
            self.numbers = array.array("f", vectors)

        async def ask(self, question: str, ctx: Context):
            (q,) = await ctx.embed([question])
            n = self.numbers
            scored = [(sum(q[j] * n[i * dims + j] for j in range(dims)), i) for i in range(len(passages))]
            for score, i in sorted(scored, reverse=True)[:2]:
                yield f"[{passages[i][0]}, {score:.2f}] "
                for word in passages[i][1].split()[:24]:
                    yield word + " "
                yield "\n"

    return Librarian


def say(text: str = "") -> None:
    print(text, flush=True)


class Cluster:
    """A head and two workers as processes of their own, with logs in a folder."""

    def __init__(self) -> None:
        self.home = tempfile.mkdtemp(prefix="covey-demo-")
        self.env = {**os.environ, "COVEY_HOME": self.home, "COVEY_PYTHON": sys.executable}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *args: str) -> None:
        binary = os.environ.get("COVEY_BIN") or shutil.which("covey")
        if not binary:
            raise SystemExit("there is no covey command; run `make build` first")
        log = open(os.path.join(self.home, f"{name}.log"), "ab")
        self.processes[name] = subprocess.Popen([binary, *args], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()

    def up(self) -> dict[str, str]:
        self.start("head", "head", "--port", "0")
        path = pathlib.Path(self.home) / "credentials.json"
        end = time.monotonic() + 20
        while not path.exists():
            if self.processes["head"].poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the head did not start; see {self.home}/head.log")
            time.sleep(0.01)
        found = json.loads(path.read_text())
        token = f"{found['join_secret']}@{found['address']}"
        for number in (1, 2):
            models = ["--models", str(ROOT / "models"), "--models", str(ROOT / ".cache/models")]
            self.start(f"worker-{number}", "worker", "--join", token, "--name", f"worker-{number}", "--cpus", "1", *models)
        return found

    def down(self) -> None:
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def documents(folder: pathlib.Path) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        skip = any(p.startswith(".") or p in ("target", "goldens", "generated", "node_modules") for p in parts)
        if not skip and path.suffix in SUFFIXES and path.is_file() and path.stat().st_size < 400_000:
            text = path.read_text(errors="replace")
            if len(text.split()) > 30:
                found.append((str(path.relative_to(folder)), text))
    # Prose first: it answers questions better than code.
    return sorted(found, key=lambda d: (not d[0].endswith(".md"), d[0]))[:DOCUMENTS_MAX]


def bar(done: int, total: int, chunks: int) -> None:
    width = 30
    full = width * done // total
    line = f"  [{'#' * full}{'.' * (width - full)}] {done}/{total} documents, {chunks} chunks"
    if sys.stderr.isatty():
        print("\r" + line, end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done % 12 == 0 or done == total:
        say(line)


def swarm(cluster: Cluster, docs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    say(f"\n2. a swarm of Reader agents over {len(docs)} documents; every document is a durable task")
    begin = time.monotonic()
    questions = covey.embed(QUESTIONS)
    tasks = {name: covey.submit(Reader, "read", name, text, questions, message_id=f"read-{name}") for name, text in docs}
    again = covey.submit(Reader, "read", *docs[0], questions, message_id=f"read-{docs[0][0]}")
    assert again.id == tasks[docs[0][0]].id, "the same message id must make the same task"
    killed = None
    done, chunks, tokens, restarted = 0, 0, 0, 0
    rows: list[Passage] = []
    for name, task in tasks.items():
        events = list(task.events())
        numbers = [e["seq"] for e in events]
        assert numbers == list(range(1, len(events) + 1)), f"{name}: numbers have gaps or repeats"
        ends = [e for e in events if e["event"]["type"] == "finished"]
        assert len(ends) == 1 and events[-1] is ends[0], f"{name}: {len(ends)} terminal events"
        assert ends[0]["event"]["outcome"]["is"] == "completed", f"{name}: {ends[0]['event']['outcome']}"
        restarted += any(e["event"]["type"] == "step_reset" for e in events)
        items = cast("list[object]", task.result())
        head, answers = cast(Summary, items[0]), cast("list[Passage]", items[1:])
        assert head["document"] == name and len(answers) == len(QUESTIONS) * bool(head["chunks"])
        chunks, tokens, done = chunks + head["chunks"], tokens + head["tokens"], done + 1
        rows += answers
        bar(done, len(docs), chunks)
        if killed is None and done >= max(1, len(docs) // 4):
            killed = cluster.processes["worker-2"]
            killed.send_signal(signal.SIGKILL)
            say("  kill -9 worker-2, in the middle of the swarm")
    wall = time.monotonic() - begin
    say(f"  all {done} tasks finished, each with exactly one terminal event; nothing missing, nothing twice")
    say(f"  {restarted} tasks were running on the killed worker and were run again by the other\n")
    best: list[Passage] = []
    for number, question in enumerate(QUESTIONS):
        say(f"  {question}")
        for row in sorted((r for r in rows if r["question"] == number), key=lambda r: -r["score"])[:2]:
            text = re.sub(r"\s+", " ", row["passage"])
            say(f"    {row['score']:.3f}  {row['document']:<36.36}  {text[:90]}…")
        best += sorted((r for r in rows if r["question"] == number), key=lambda r: -r["score"])[:8]
    say(f"\n  {done} documents, {chunks} chunks, {tokens} tokens in {wall:.1f} s: {tokens / wall:.0f} tokens/s")
    for node in covey.status()["nodes"]:
        say(f"  {node['name']}: {node['tasks_done']} tasks ({node['state']})")
    return list(dict.fromkeys((r["document"], re.sub(r"\s+", " ", r["passage"])) for r in best))


async def ask_by_a2a(address: str, key: str, question: str) -> None:
    import httpx
    from a2a.client import ClientConfig, create_client
    from a2a.types import Message, Part, Role, SendMessageRequest

    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30) as http:
        client = await create_client(f"http://{address}/a2a/librarian", ClientConfig(streaming=True, httpx_client=http))
        message = Message(message_id="demo-1", role=Role.ROLE_USER, parts=[Part(text=question)])
        chunks, state = 0, None
        async for event in client.send_message(SendMessageRequest(message=message)):
            if event.HasField("artifact_update"):
                chunks += 1
                for part in event.artifact_update.artifact.parts:
                    print(part.text, end="", flush=True)
            elif event.HasField("status_update"):
                state = event.status_update.status.state
        from a2a.types import TaskState

        assert state == TaskState.TASK_STATE_COMPLETED and chunks > 2, f"A2A ended in state {state} after {chunks} chunks"
        say(f"  ({chunks} chunks)")


def ask_by_openai(address: str, key: str) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"http://{address}/v1", api_key=key)
    prompt = "amber is 42, river is 7, stone is 19\nWhat is river?"
    stream = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": prompt}], stream=True)
    print(f"  {prompt!r} → ", end="", flush=True)
    answer = ""
    for chunk in stream:
        text = chunk.choices[0].delta.content or "" if chunk.choices else ""
        answer += text
        print(text, end="", flush=True)
    say()
    assert answer == "7", f"the tiny model answered {answer!r}"


def main() -> int:
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT).resolve()
    docs = documents(folder)
    if not docs:
        say(f"no documents in {folder}; give a folder with text: make demo DIR=…")
        return 64
    begin = time.monotonic()
    cluster = Cluster()
    try:
        say("1. a head and two workers, as separate processes on loopback, joined by a token")
        found = cluster.up()
        covey.connect(found["address"], found["admin_key"])
        end = time.monotonic() + 20
        while sum(n["state"] == "live" for n in covey.status()["nodes"]) < 2:
            if time.monotonic() > end:
                raise SystemExit(f"the workers did not join; see {cluster.home}")
            time.sleep(0.02)
        say(f"  up after {time.monotonic() - begin:.2f} s; logs in {cluster.home}")
        say("  embeddings: minilm (all-MiniLM-L6-v2, from a PyPI wheel, checked); text: tiny (shipped)")
        passages = swarm(cluster, docs)

        say("\n3. the same cluster over A2A")
        flat = array.array("f")
        vectors = covey.embed([text for _, text in passages])
        for vector in vectors:
            flat.extend(vector)
        librarian(passages, flat.tobytes(), len(vectors[0])).register()
        say(f"  card: http://{found['address']}/a2a/librarian/.well-known/agent-card.json")
        say(f"  asked with the official a2a-sdk: {QUESTIONS[1]}\n")
        asyncio.run(ask_by_a2a(found["address"], found["admin_key"], QUESTIONS[1]))

        say("\n4. the tiny language model through the OpenAI-compatible endpoint, with the openai client")
        ask_by_openai(found["address"], found["admin_key"])
        covey.shutdown()
    finally:
        cluster.down()
    left = [name for name, process in cluster.processes.items() if process.poll() is None]
    assert not left, f"still running: {left}"
    say(f"\neverything held, and everything is stopped. {time.monotonic() - begin:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
