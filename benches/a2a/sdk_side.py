"""An echo agent on a2a-sdk with uvicorn: each word of the message is a chunk of the one artifact."""

import sys

import uvicorn
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Part, Task, TaskState, TaskStatus
from starlette.applications import Starlette


class Echo(AgentExecutor):
    async def execute(self, context, events):
        message = context.message
        task = context.current_task
        if task is None:
            task = Task(id=context.task_id, context_id=context.context_id, status=TaskStatus(state=TaskState.TASK_STATE_SUBMITTED), history=[message])
            await events.enqueue_event(task)
        updater = TaskUpdater(events, task.id, task.context_id)
        await updater.start_work()
        words = "".join(part.text for part in message.parts).split(" ")
        for n, word in enumerate(words):
            text = word + (" " if n + 1 < len(words) else "")
            await updater.add_artifact([Part(text=text)], artifact_id="answer", name="answer", append=n > 0)
        await updater.complete()

    async def cancel(self, context, events):
        raise NotImplementedError


def main():
    port = int(sys.argv[1])
    card = AgentCard(
        name="echo",
        description="echo",
        version="1",
        supported_interfaces=[AgentInterface(url=f"http://127.0.0.1:{port}/", protocol_binding="JSONRPC", protocol_version="1.0")],
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="echo", name="echo", description="echo", tags=["echo"])],
    )
    handler = DefaultRequestHandler(agent_executor=Echo(), task_store=InMemoryTaskStore(), agent_card=card)
    app = Starlette(routes=create_jsonrpc_routes(handler, "/"))
    uvicorn.run(app, port=port, log_level="critical", access_log=False)


main()
