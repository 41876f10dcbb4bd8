"""Runs on the cluster: its folder was shipped there, and `covey.init()` connects to the cluster that it runs in."""

import pathlib

import covey


@covey.task
def count_words(text: str) -> int:
    return len(text.split())


if __name__ == "__main__":
    with covey.init():
        poems = sorted(pathlib.Path("poems").glob("*.txt"))
        counts = count_words.map([poem.read_text() for poem in poems])
        for poem, count in zip(poems, counts, strict=True):
            print(f"{poem.stem}: {count} words", flush=True)
