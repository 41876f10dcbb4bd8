"""Retrieval-augmented generation: documents are found by the meaning of a question, and a model answers from what was found."""

import os
import pathlib

import covey
from covey import Actor, Context, agent

HERE = pathlib.Path(__file__).parent
MODELS = HERE.parent.parent / ".cache/models"  # `make minilm` puts the embedding model there

Vector = list[float]


@agent(concurrency=8)
class Library(Actor):
    """Keeps documents with a vector for each, and answers questions from them."""

    def __init__(self) -> None:
        self.shelf: list[tuple[str, Vector]] = []

    @covey.method
    async def add(self, documents: list[str], ctx: Context = covey.given) -> int:
        # One request for many texts: the model computes them together.
        vectors = await ctx.embed(documents, model="minilm")
        self.shelf += zip(documents, vectors, strict=True)
        return len(self.shelf)

    @covey.method
    async def find(self, question: str, ctx: Context = covey.given) -> str:
        (asked,) = await ctx.embed([question], model="minilm")
        # The vectors have unit length, so the sum of products is the cosine.
        return max(self.shelf, key=lambda entry: sum(a * b for a, b in zip(asked, entry[1], strict=True)))[0]

    @covey.method
    async def ask(self, topic: str, key: str, ctx: Context = covey.given) -> str:
        # The tiny model looks up words, and no more; another one takes the whole document and the question as it is.
        facts = (await self.find(topic, ctx)).splitlines()[1]
        return await ctx.llm.complete(f"{facts}\nWhat is {key}?", model="tiny", max_tokens=8)


def main() -> None:
    library = Library.remote()
    documents = [path.read_text() for path in sorted(HERE.glob("documents/*.txt"))]
    print(library.add.remote(documents).result(timeout=60), "documents")

    found = library.find.remote("Where do I get something to hang up a picture?").result(timeout=60)
    print("found:", found.splitlines()[0])
    assert "tools" in found

    # Many questions at once.
    questions = [("I want to drive in a nail", "hammer", "15"), ("breakfast", "roll", "1"), ("a gift for mother's day", "rose", "5")]
    answers = covey.get([library.ask.remote(topic, key) for topic, key, _ in questions], timeout=60)
    for (topic, key, right), answer in zip(questions, answers, strict=True):
        print(f"{topic}; what is {key}? {answer}")
        assert answer == right, answer


if __name__ == "__main__":
    if not (MODELS / "minilm").exists():
        raise SystemExit("the embedding model is not here yet: make minilm")
    # Beside the tiny model, which comes with the command. (`covey.init(models=…)` takes a folder in place of all others.)
    os.environ.setdefault("COVEY_MODELS", str(MODELS))
    with covey.init():
        main()
