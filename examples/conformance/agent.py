"""An agent whose behaviour the compatibility kits of A2A choose, by the beginning of a message's id or of its text.

    covey up --push-allow 127.0.0.0/8 &
    python examples/conformance/agent.py    # registers `conformance`, and two that can do less or want more

The names are those of a2a-tck (1.0) and of the declarative tests (ACTS). What is not named here completes at once.
"""

import asyncio
import os

import covey
from covey import Context, File

STREAMING_TIMEOUT = float(os.environ.get("TCK_STREAMING_TIMEOUT", "2"))


class Conformance:
    """Does what a test's message id or text asks for."""

    async def run(self, text: str, ctx: Context):
        behaviour = ctx.message.id or ""
        if not behaviour.startswith(("tck-", "test-")):
            behaviour = text
        begins = behaviour.startswith
        if begins("tck-artifact-text"):
            ctx.artifact("text", "Generated text content")
        elif begins("tck-artifact-file-url"):
            ctx.artifact("file", File(url="https://example.com/output.txt", name="output.txt", mime="text/plain"))
        elif begins("tck-artifact-file"):
            ctx.artifact("file", File(b"tck", name="output.txt", mime="text/plain"))
        elif begins("tck-artifact-data"):
            ctx.artifact("data", {"key": "value", "count": 42})
        elif begins(("tck-input-required", "tck-multi-turn")):
            answer = await ctx.ask("What else?")
            yield f"You said {answer}"
        elif begins("tck-auth-required"):
            await ctx.authorize("Log in first", url="https://login.example.com")
        elif begins("tck-reject-task"):
            raise covey.Rejected("rejected")
        elif begins("tck-task-failure"):
            raise RuntimeError("failed as asked")
        elif begins(("tck-stream-artifact-file",)):
            ctx.artifact("file", File(b"tck", name="output.txt", mime="text/plain"))
        elif begins("tck-stream-artifact-chunked"):
            for n in range(3):
                ctx.artifact("chunked", f"chunk {n} ", append=n > 0, last=n == 2)
        elif begins("tck-stream-artifact-text"):
            ctx.artifact("text", "Streamed text content")
        elif begins(("tck-stream", "test-stream")):
            for word in ("one ", "two ", "three"):
                yield word
                await asyncio.sleep(0.05)
        elif begins(("test-resubscribe-message-id", "tck-long-running", "tck-cancel")):
            await asyncio.sleep(2 * STREAMING_TIMEOUT)
            yield "done"
        elif begins("tck-message-response"):
            ctx.reply("Direct message response")
        else:
            ctx.reply("Hello from TCK", whole=False)


def register() -> list[str]:
    """Makes the agents known: one that can do everything, one that can do little, one that wants an extension."""
    known = {"provider": ("Covey", "https://example.com/covey"), "documentation_url": "https://example.com/docs", "version": "1.0.0"}
    wanted = {"uri": "urn:a2a:tck:required-extension", "description": "Wanted by the kit", "required": True}
    variants = {
        "conformance": (Conformance, {"messages": True}),
        "conformance-plain": (Conformance, {"streaming": False, "push_notifications": False, "extended_card": False}),
        "conformance-extension": (Conformance, {"extensions": [wanted]}),
    }
    for name, (cls, special) in variants.items():
        covey.agent(name=name, concurrency=64, a2a={**known, **special})(cls).register()
    return list(variants)


if __name__ == "__main__":
    with covey.connect():
        print("registered", ", ".join(register()))
