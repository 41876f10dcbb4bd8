"""An agent on a2a-sdk 0.3: says each word of what it is told, or asks."""

import sys

import uvicorn
from a2a.server.agent_execution import AgentExecutor
from a2a.server.apps import A2AStarletteApplication
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentSkill, Part, TaskState, TextPart
from a2a.utils import new_task

port = int(sys.argv[1])


def text(value):
    return Part(root=TextPart(text=value))


class Agent(AgentExecutor):
    async def execute(self, context, events):
        said = context.get_user_input()
        task = context.current_task
        if task is None:
            task = new_task(context.message)
            await events.enqueue_event(task)
        updater = TaskUpdater(events, task.id, task.context_id)
        if task.status.state == TaskState.input_required:
            await updater.add_artifact([text(f"painted {said}")], artifact_id="answer")
            return await updater.complete()
        if said == "ask":
            message = updater.new_agent_message([text("which color?")])
            return await updater.update_status(TaskState.input_required, message, final=True)
        words = said.split(" ")
        for n, word in enumerate(words):
            chunk = word + (" " if n + 1 < len(words) else "")
            await updater.add_artifact([text(chunk)], artifact_id="answer", append=n > 0)
        await updater.complete()

    async def cancel(self, context, events):
        raise NotImplementedError


card = AgentCard(
    name="Painter of 0.3",
    description="Paints.",
    version="1",
    url=f"http://127.0.0.1:{port}/",
    capabilities=AgentCapabilities(streaming=True),
    default_input_modes=["text/plain"],
    default_output_modes=["text/plain"],
    skills=[AgentSkill(id="paint", name="Paint", description="Paints a wall.", tags=["paint"])],
)
handler = DefaultRequestHandler(agent_executor=Agent(), task_store=InMemoryTaskStore())
uvicorn.run(A2AStarletteApplication(card, handler).build(), port=port, log_level="warning", access_log=False)
