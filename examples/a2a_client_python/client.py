"""The official a2a-sdk talks to an agent of the cluster: it reads the card, sends a message, reads the stream, answers a question."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import httpx
from a2a.client import Client, ClientConfig, create_client
from a2a.types import Message, Part, Role, SendMessageRequest, TaskState

import covey
from covey import Actor, Context, agent


@agent(name="painter")
class Painter(Actor):
    """Paints what you name, in a color that it asks for."""

    @covey.method
    async def paint(self, text: str, ctx: Context = covey.given) -> AsyncIterator[str]:
        color = await ctx.ask("Which color?", options=["red", "blue"])
        for word in ("the", text, "is", color):
            yield word + " "


async def say(client: Client, text: str, task_id: str = "") -> tuple[str, "TaskState", str]:
    """One message: the task that it began or went on with, the state that this ended in, and what was said."""
    message = Message(message_id=str(uuid.uuid4()), role=Role.ROLE_USER, parts=[Part(text=text)], task_id=task_id)
    state, said = TaskState.TASK_STATE_UNSPECIFIED, ""
    async for event in client.send_message(SendMessageRequest(message=message)):
        if event.HasField("task"):
            task_id, state = event.task.id, event.task.status.state
        elif event.HasField("status_update"):
            state = event.status_update.status.state
            said += "".join(part.text for part in event.status_update.status.message.parts)
        elif event.HasField("artifact_update"):
            said += "".join(part.text for part in event.artifact_update.artifact.parts)
    return task_id, state, said


async def main(address: str, key: str) -> None:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30) as http:
        client = await create_client(f"http://{address}/a2a/painter", ClientConfig(streaming=True, httpx_client=http))
        task, state, question = await say(client, "wall")
        print(f"wall > {question!r}")
        assert state == TaskState.TASK_STATE_INPUT_REQUIRED
        # A message with the task's id is the answer to its question.
        _, state, answer = await say(client, "blue", task)
        print(f"blue > {answer!r}")
        assert state == TaskState.TASK_STATE_COMPLETED and answer.strip() == "the wall is blue"


if __name__ == "__main__":
    with covey.init() as session:
        Painter.register()  # known to clients, without an actor yet
        asyncio.run(main(session.address, session.token))
