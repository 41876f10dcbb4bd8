"""Starts a cluster with an agent that asks something, and a JavaScript client that talks to it."""

import pathlib
import shutil
import subprocess
from collections.abc import AsyncIterator

import covey
from covey import Actor, Context, agent

HERE = pathlib.Path(__file__).parent


@agent(name="painter")
class Painter(Actor):
    """Paints what you name, in a color that it asks for."""

    @covey.method
    async def paint(self, text: str, ctx: Context = covey.given) -> AsyncIterator[str]:
        color = await ctx.ask("Which color?", options=["red", "blue"])
        for word in ("the", text, "is", color):
            yield word + " "


def main() -> None:
    if not (HERE / "node_modules").exists():
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=HERE, check=True)
    with covey.init() as session:
        Painter.register()  # known to clients, without an actor yet
        url = f"http://{session.address}/a2a/{Painter.name}"
        subprocess.run(["node", "client.js", url, session.token], cwd=HERE, check=True, timeout=60)


if __name__ == "__main__":
    if shutil.which("npm"):
        main()
    else:
        print("skipped: there is no npm here")
