"""Items of streams between Python and Python."""

from covey import agent

SCALARS = [
    "", "a", "ä€😀", "x" * 255, "x" * 256, "é" * 128, "x" * (64 << 10), "y" * (65 << 10), "\ud800", "a\0b",
    0, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, -(2**63), 2**63, 2**200,
    0.0, -0.0, 1.5, float("inf"), float("nan"), 5e-324, True, False, None,
    b"", b"abc", (), ("a", 1), [1], {"a": None}, 1j,
]  # fmt: skip


class Word(str):
    """Text with a class of its own."""


@agent
class Scalars:
    """Gives back what it is asked for, an item at a time."""

    def gives(self):
        yield from [*SCALARS, Word("w")]

    async def gives_later(self):
        for item in [*SCALARS, Word("w")]:
            yield item


def test_each_kind_of_item_arrives_as_what_it_was(cluster):
    actor = Scalars.remote()
    for method in (actor.gives, actor.gives_later):
        *items, word = method.remote()
        assert type(word).__name__ == "Word" and word == "w"
        for item, sent in zip(items, SCALARS, strict=True):
            assert type(item) is type(sent) and repr(item) == repr(sent)
