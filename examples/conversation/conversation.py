"""A task that asks back: it waits for its answers on disk, not in a process, so a person may take days to answer."""

from typing import TypedDict

import covey
from covey import Actor, Context, agent


class Offer(TypedDict):
    color: str
    coats: int
    litres: float


@agent
class Painter(Actor):
    """Asks what the wall is to look like, and says how much paint that takes."""

    @covey.method
    async def paint(self, square_metres: float, ctx: Context = covey.given) -> Offer:
        color = await ctx.ask("Which color?", options=["red", "blue"])
        # An answer that does not fit the schema is refused with the reason, and the question is asked again.
        coats = await ctx.ask("How many coats?", schema={"type": "integer", "minimum": 1, "maximum": 3})
        return {"color": str(color), "coats": coats.data, "litres": square_metres * coats.data / 10}


def main() -> None:
    task = Painter.paint.submit(30.0)
    # A person types these. "green" and "many" do not fit: the question comes again with the reason.
    typed = iter(["green", "blue", "many", 2])
    for event in task.events():
        # `events` waits for what happens next in the task and ends when the task does.
        if event.type == "interrupt_raised" and (question := task.question):
            reply = next(typed)
            print(f"{question.prompt} > {reply}")
            task.answer(reply)
    offer = task.result(timeout=30)
    print(offer)
    assert offer == {"color": "blue", "coats": 2, "litres": 6.0}


if __name__ == "__main__":
    with covey.init():
        main()
