"""A head that is stopped: whoever follows a task is told, by a last frame that says where to go on."""

import asyncio
import http.client
import json
import signal
import threading
import uuid

import grpc
import pytest
from a2a.compat.v0_3 import a2a_v0_3_pb2 as old
from a2a.compat.v0_3 import a2a_v0_3_pb2_grpc
from a2a.types import a2a_pb2, a2a_pb2_grpc
from conftest import eventually
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2
from test_push import Receiver, http_to, rpc
from test_turns import made

import covey

TICKS = 150
WHOLE = "".join(f"{n} " for n in range(TICKS))


class Ticker:
    async def run(self, text: str):
        for n in range(int(text)):
            yield f"{n} "
            await asyncio.sleep(0.01)


def texts(event):
    """The text of an event's artifact, whatever version it is of."""
    if isinstance(event, list):
        return "".join(map(texts, event))
    if not isinstance(event, dict):
        return ""
    if "artifact" in event:
        return "".join(part.get("text", "") for part in event["artifact"]["parts"])
    return "".join(map(texts, event.values()))


class Follower:
    """Reads one stream to its end, in a thread."""

    def __init__(self, nodes, agent, task=None, place=None):
        self.nodes, self.agent, self.task, self.place = nodes, agent, task, place
        self.text, self.last = "", None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def end(self):
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self

    def go_on(self):
        """Another that begins where this one was told it may."""
        told = self.interrupted()
        assert told["reason"] == "UNAVAILABLE"
        return type(self)(self.nodes, self.agent, told["taskId"], told["lastEventId"])


class Sse(Follower):
    def run(self):
        method, path, body = self.ask()
        connection = http.client.HTTPConnection(self.nodes.keys["address"], timeout=60)
        headers = {"Authorization": f"Bearer {self.nodes.keys['admin_key']}", "Content-Type": "application/json", "A2A-Version": self.version}
        if self.place:
            headers["Last-Event-ID"] = self.place
        connection.request(method, path, body and json.dumps(body), headers)
        # A body that is cut raises here, and the thread leaves no last frame.
        for event in self.read(connection.getresponse()):
            self.last = event
            self.seen = event.get("id", getattr(self, "seen", None))
            self.text += texts(json.loads(event["data"]))
        self.whole = True

    def read(self, response):
        fields = {}
        for line in response:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if value:
                fields[name] = value
            elif fields:
                yield fields
                fields = {}

    def interrupted(self):
        assert self.whole and "id" not in self.last
        info = self.info(json.loads(self.last["data"]))
        # The frame says in words what the ids of the stream said.
        assert info["lastEventId"] == self.seen
        return info


class Rpc(Sse):
    version = "1.0"

    def ask(self):
        message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": str(TICKS)}]}
        method, params = ("SubscribeToTask", {"id": self.task}) if self.task else ("SendStreamingMessage", {"message": message})
        return "POST", f"/a2a/{self.agent}", {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}

    def info(self, last):
        assert last["id"] == 7 and last["error"]["code"] == -32603
        return {"reason": last["error"]["data"][0]["reason"], **last["error"]["data"][0]["metadata"]}


class OldRpc(Sse):
    version = "0.3"

    def ask(self):
        message = {"messageId": uuid.uuid4().hex, "role": "user", "parts": [{"kind": "text", "text": str(TICKS)}]}
        method, params = ("tasks/resubscribe", {"id": self.task}) if self.task else ("message/stream", {"message": message})
        return "POST", f"/a2a/{self.agent}", {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}

    def info(self, last):
        assert last["id"] == 7 and last["error"]["code"] == -32603
        return last["error"]["data"]


class Rest(Sse):
    version, below, parts = "1.0", "", "parts"

    def ask(self):
        root = f"/a2a/{self.agent}{self.below}"
        if self.task:
            return "GET", f"{root}/tasks/{self.task}:subscribe", None
        message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", self.parts: [{"text": str(TICKS)}]}
        return "POST", f"{root}/message:stream", {"message": message}

    def info(self, last):
        assert self.last["event"] == "error" and last["error"]["code"] == 503
        return {"reason": last["error"]["details"][0]["reason"], **last["error"]["details"][0]["metadata"]}


class OldRest(Rest):
    version, below, parts = "0.3", "/v1", "content"


class Grpc(Follower):
    def run(self):
        metadata = [("authorization", f"Bearer {self.nodes.keys['admin_key']}")]
        if self.place:
            metadata.append(("last-event-id", self.place))
        with grpc.insecure_channel(self.nodes.keys["address"]) as channel:
            try:
                for event in self.open(channel, metadata):
                    self.text += texts(MessageToDict(event))
            except grpc.RpcError as error:
                self.last = error

    def open(self, channel, metadata):
        stub = a2a_pb2_grpc.A2AServiceStub(channel)
        if self.task:
            return stub.SubscribeToTask(a2a_pb2.SubscribeToTaskRequest(tenant=self.agent, id=self.task), metadata=metadata)
        message = a2a_pb2.Message(message_id=uuid.uuid4().hex, role="ROLE_USER", parts=[a2a_pb2.Part(text=str(TICKS))])
        return stub.SendStreamingMessage(a2a_pb2.SendMessageRequest(tenant=self.agent, message=message), metadata=metadata)

    def interrupted(self):
        assert self.last.code() == grpc.StatusCode.UNAVAILABLE, self.last
        told = status_pb2.Status.FromString(dict(self.last.trailing_metadata())["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        assert any(detail.Unpack(info) for detail in told.details if detail.Is(info.DESCRIPTOR))
        return {"reason": info.reason, **info.metadata}


class OldGrpc(Grpc):
    def open(self, channel, metadata):
        metadata = [*metadata, ("a2a-agent", self.agent)]
        stub = a2a_v0_3_pb2_grpc.A2AServiceStub(channel)
        if self.task:
            return stub.TaskSubscription(old.TaskSubscriptionRequest(name=f"tasks/{self.task}"), metadata=metadata)
        message = old.Message(message_id=uuid.uuid4().hex, role="ROLE_USER", content=[old.Part(text=str(TICKS))])
        return stub.SendStreamingMessage(old.SendMessageRequest(request=message), metadata=metadata)


@pytest.fixture
def house(nodes):
    nodes.head("--push-allow", "127.0.0.0/8")
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)
    nodes.agent = made(Ticker, concurrency=16).register()
    return nodes


def stop(nodes, by=signal.SIGTERM):
    head = nodes.running.pop("head")
    head.send_signal(by)
    assert head.wait(20) == (0 if by is signal.SIGTERM else -by)


def test_every_stream_ends_with_a_frame_that_says_where_to_go_on(house):
    followers = [kind(house, house.agent) for kind in (Rpc, OldRpc, Rest, OldRest, Grpc, OldGrpc) for _ in range(2)]
    eventually(lambda: all("9 " in f.text for f in followers))
    stop(house)
    for follower in followers:
        assert follower.end().text != WHOLE and WHOLE.startswith(follower.text)
        follower.interrupted()
    house.head()
    for before, after in [(f, f.go_on()) for f in followers]:
        assert before.text + after.end().text == WHOLE, type(before)


def test_python_follows_on_by_itself(house):
    task = covey.submit(house.agent, "run", str(TICKS))
    chunks = []
    reader = threading.Thread(target=lambda: chunks.extend(task.chunks()), daemon=True)
    reader.start()
    eventually(lambda: task.state() == "working")
    stop(house)
    house.head()
    reader.join(60)
    assert "".join(chunks) == WHOLE


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_webhook_is_told_on_when_the_head_is_back(house, by):
    receiver = Receiver()
    message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": str(TICKS)}]}
    configuration = {"returnImmediately": True, "taskPushNotificationConfig": {"url": receiver.url}}
    with http_to(house) as web:
        answer = rpc(web, f"/a2a/{house.agent}", "SendMessage", {"message": message, "configuration": configuration})
        assert answer.status_code == 200, answer.text
    eventually(lambda: len(receiver.told) > 5)
    stop(house, by)
    house.head("--push-allow", "127.0.0.0/8")
    eventually(lambda: receiver.state() == "TASK_STATE_COMPLETED")
    # What was under way comes once more, with its id and just as it was.
    told = dict(zip(receiver.ids(), receiver.events(), strict=True))
    assert len(receiver.told) - len(told) <= 1 and all(told[i] == e for i, e in zip(receiver.ids(), receiver.events(), strict=True))
    assert "".join(map(texts, told.values())) == WHOLE
    receiver.close()
