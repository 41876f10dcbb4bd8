"""An agent on a2a-sdk 1.3.0, over JSON-RPC or HTTP+JSON. What it does is the first word of what it is told."""

import asyncio
import sys

import uvicorn
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Message, Part, Role, Task, TaskState, TaskStatus
from starlette.applications import Starlette

port, binding, streaming = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "streams"
stopped = []


class Agent(AgentExecutor):
    async def execute(self, context, events):
        text = "".join(part.text for part in context.message.parts)
        if text == "message":
            reply = Message(message_id="r1", role=Role.ROLE_AGENT, parts=[Part(text="only a message")])
            return await events.enqueue_event(reply)
        task = context.current_task
        if task is None:
            status = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
            task = Task(id=context.task_id, context_id=context.context_id, status=status, history=[context.message])
            await events.enqueue_event(task)
        updater = TaskUpdater(events, task.id, task.context_id)
        if task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED:
            await updater.add_artifact([Part(text=f"painted {text}")], artifact_id="answer")
            return await updater.complete()
        await updater.start_work(updater.new_agent_message([Part(text="at it")]))
        if text == "ask":
            return await updater.requires_input(updater.new_agent_message([Part(text="which color?")]))
        if text == "fail":
            return await updater.failed(updater.new_agent_message([Part(text="no paint left")]))
        if text == "status":
            return await updater.complete(updater.new_agent_message([Part(text="said in the status")]))
        if text == "wait":
            await asyncio.sleep(60)
        if text == "stopped":
            text = " ".join(stopped) or "nobody"
        words = text.split(" ")
        for n, word in enumerate(words):
            chunk = word + (" " if n + 1 < len(words) else "")
            await updater.add_artifact([Part(text=chunk)], artifact_id="answer", append=n > 0)
        await updater.complete()

    async def cancel(self, context, events):
        stopped.append("one")
        await TaskUpdater(events, context.task_id, context.context_id).cancel()


card = AgentCard(
    name="Painter of 1.3",
    description="Paints.",
    version="1",
    supported_interfaces=[AgentInterface(url=f"http://127.0.0.1:{port}/", protocol_binding=binding, protocol_version="1.0")],
    capabilities=AgentCapabilities(streaming=streaming),
    default_input_modes=["text/plain"],
    default_output_modes=["text/plain"],
    skills=[AgentSkill(id="paint", name="Paint", description="Paints a wall.", tags=["paint"])],
)
handler = DefaultRequestHandler(agent_executor=Agent(), task_store=InMemoryTaskStore(), agent_card=card)
routes = create_jsonrpc_routes(handler, "/") if binding == "JSONRPC" else create_rest_routes(handler)
app = Starlette(routes=[*create_agent_card_routes(card), *routes])
uvicorn.run(app, port=port, log_level="warning", access_log=False)
