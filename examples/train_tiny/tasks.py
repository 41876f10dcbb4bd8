"""The seeded generator behind the tiny model: chat-formatted small tasks with exact answers.

`example(rng, kind)` returns a list of chat messages, the last one the assistant's exact answer. The same seed
gives the same text on every machine (only `random.Random` is used), so the training text, the held-out text and
the tests all come from here. Training draws from even seeds and evaluation from odd ones; no example is stored.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

Message = dict[str, str]

WORDS = (
    "amber river stone cloud maple ocean violet copper meadow harbor candle forest silver orange island garden "
    "mirror window castle bridge rocket planet comet ladder basket button pepper salmon falcon turtle rabbit badger "
    "walnut cherry lemon olive pearl marble velvet cotton linen wagon anchor beacon cabin desert engine feather "
    "glacier hammer igloo jacket kettle lantern magnet needle onion pencil quartz ribbon saddle tunnel umbrella "
    "valley whistle yarrow zephyr apple bread chair dream eagle flame grape house juice knife light mouse night "
    "piano queen radio sheep table uncle voice water young zebra red blue green north south east west hill lake "
    "sun moon star rain snow wind fire leaf tree bird fish wolf bear fox owl cat dog cow pig hen ant bee"
).split()
NAMES = "Ada Ben Cleo Dan Eva Finn Gina Hugo Iris Jack Kira Leo Mia Nils Olga Paul Quinn Rosa Sam Tara Uma Vera Will Zoe".split()
CITIES = "Rome Paris Oslo Berlin Lisbon Vienna Dublin Madrid Athens Cairo Tokyo Lima Quito Delhi Seoul Bern".split()
JOBS = "baker pilot nurse farmer painter teacher doctor sailor writer driver".split()
CONSONANTS, VOWELS = "bcdfghklmnprstvz", "aeiou"

TOOLS: list[tuple[str, str, list[str], Callable[[random.Random], str]]] = [
    ("weather", "city", ["weather in {}", "how is the weather in {}?", "will it rain in {}?"], lambda r: r.choice(CITIES)),
    ("search", "query", ["search for {}", "find pages about {}", "look up {}"], lambda r: f"{r.choice(WORDS)} {r.choice(WORDS)}"),
    ("timer", "minutes", ["set a timer for {} minutes", "wake me in {} minutes"], lambda r: str(r.randrange(1, 60))),
    ("open", "file", ["open the file {}.txt", "show me {}.txt"], lambda r: r.choice(WORDS)),
    ("call", "name", ["call {}", "phone {} please"], lambda r: r.choice(NAMES)),
    ("translate", "word", ["translate {}", "what is {} in another language?"], lambda r: r.choice(WORDS)),
    ("buy", "item", ["buy a {}", "order one {} please"], lambda r: r.choice(WORDS)),
]


def word(rng: random.Random) -> str:
    """A common word, or a made-up one, so that copying cannot be learnt as a list."""
    if rng.random() < 0.6:
        return rng.choice(WORDS)
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randrange(1, 4)))


def value(rng: random.Random) -> str:
    return str(rng.randrange(0, 1000)) if rng.random() < 0.5 else word(rng)


def copy(rng: random.Random) -> list[Message]:
    text = " ".join(value(rng) for _ in range(rng.randrange(1, 13)))
    ask = rng.choice(["Repeat: {}", "repeat {}", "Say: {}", "Copy this: {}", "Repeat after me: {}", "Echo: {}"])
    return [user(ask.format(text)), assistant(text)]


def lookup(rng: random.Random) -> list[Message]:
    count = rng.randrange(2, 9) if rng.random() < 0.8 else rng.randrange(9, 28)
    keys: list[str] = []
    while len(keys) < count:
        key = word(rng)
        if key not in keys:
            keys.append(key)
    values = [value(rng) for _ in keys]
    line = rng.choice(["{} is {}", "{}: {}", "{} = {}"])
    join = rng.choice([", ", "\n", "; ", ". "])
    facts = join.join(line.format(k, v) for k, v in zip(keys, values))
    pick = rng.randrange(count)
    ask = rng.choice(["What is {}?", "what is {}?", "Look up {}", "{}?", "Value of {}?"]).format(keys[pick])
    if rng.random() < 0.5:
        return [system(facts), user(ask), assistant(values[pick])]
    return [user(f"{facts}\n{ask}"), assistant(values[pick])]


def sort(rng: random.Random) -> list[Message]:
    numbers = [rng.randrange(0, 100) for _ in range(rng.randrange(2, 7))]
    ask = rng.choice(["Sort: {}", "sort {}", "Sort these numbers: {}", "Put in order: {}"])
    return [user(ask.format(" ".join(map(str, numbers)))), assistant(" ".join(map(str, sorted(numbers))))]


def arithmetic(rng: random.Random) -> list[Message]:
    op = rng.choice("+-*")
    if op == "*":
        a, b = rng.randrange(0, 11), rng.randrange(0, 11)
        result = a * b
    else:
        a, b = rng.randrange(0, 51), rng.randrange(0, 51)
        if op == "-" and b > a:
            a, b = b, a
        result = a + b if op == "+" else a - b
    ask = rng.choice(["What is {} {} {}?", "{} {} {} =", "Calculate {} {} {}", "{} {} {}"]).format(a, op, b)
    return [user(ask), assistant(str(result))]


def extract(rng: random.Random) -> list[Message]:
    name, age, city, job = rng.choice(NAMES), rng.randrange(1, 100), rng.choice(CITIES), rng.choice(JOBS)
    fields: dict[str, object] = {"name": name, "age": age, "city": city, "job": job}
    keys = rng.sample(list(fields), rng.randrange(2, 5))
    if rng.random() < 0.5:
        text = ". ".join(f"{k.capitalize()}: {fields[k]}" for k in keys)
    else:
        say = {"name": f"my name is {name}", "age": f"I am {age} years old", "city": f"I live in {city}", "job": f"I work as a {job}"}
        text = ", ".join(say[k] for k in keys)
    ask = rng.choice(["{}. Give JSON.", "JSON of: {}", "Extract JSON: {}"]).format(text)
    return [user(ask), assistant(json.dumps({k: fields[k] for k in keys}))]


def tool(rng: random.Random) -> list[Message]:
    chosen = rng.sample(TOOLS, rng.randrange(2, 5))
    name, arg, asks, make = rng.choice(chosen)
    declared = "\n".join(f"{n}({a})" for n, a, _, _ in chosen)
    filled = make(rng)
    call = json.dumps({"name": name, "arguments": {arg: filled + ".txt" if name == "open" else filled}})
    return [system(f"Tools:\n{declared}"), user(rng.choice(asks).format(filled)), assistant(f"<tool_call>{call}</tool_call>")]


TALK = {
    "hello": "Hello! I am the tiny model of Covey.",
    "hi": "Hello! I am the tiny model of Covey.",
    "who are you?": "I am a tiny model to try Covey with.",
    "what can you do?": "I can copy, look up, sort, add, write JSON and choose tools.",
    "thank you": "You are welcome.",
    "bye": "Goodbye!",
}


def talk(rng: random.Random) -> list[Message]:
    ask = rng.choice(list(TALK))
    said = rng.choice([ask, ask.capitalize(), ask.rstrip("?") + ("?" if ask.endswith("?") else "")])
    return [user(said), assistant(TALK[ask])]


KINDS: dict[str, tuple[Callable[[random.Random], list[Message]], float]] = {
    "copy": (copy, 0.26),
    "lookup": (lookup, 0.30),
    "sort": (sort, 0.12),
    "arithmetic": (arithmetic, 0.14),
    "extract": (extract, 0.08),
    "tool": (tool, 0.09),
    "talk": (talk, 0.01),
}


def example(rng: random.Random, kind: str | None = None) -> list[Message]:
    """One conversation; of `kind`, or of a kind drawn by its weight."""
    if kind is None:
        kind = rng.choices(list(KINDS), [w for _, w in KINDS.values()])[0]
    return KINDS[kind][0](rng)


def render(messages: list[Message], *, prompt_only: bool = False) -> str:
    """The text of the chat template in `tokenizer_config.json`; kept in step with it by a test."""
    if prompt_only:
        return "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages if m is not messages[-1]) + "<|assistant|>"
    return "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
