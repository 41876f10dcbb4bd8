"""Messages and answers of millions of tiny values, which would take far more memory than they have bytes."""

import json
import os
import re
import subprocess
import sys

import httpx
import pytest
from conftest import Nodes

import covey
from covey import agent

MANY = '{"a":0},' * 2_000_000 + "0"


@agent
class Counts:
    """Returns, yields and asks of so many objects."""

    def returns(self, count: int):
        return many(count)

    async def yields(self, count: int):
        yield many(count)

    async def asks(self, count: int, ctx: covey.Context):
        return (await ctx.ask("which?", schema={"enum": many(count)})).text

    def hears(self, values: list):
        return len(values)


def many(count):
    return [{"a": 0}] * count


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("values"))
    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    covey.submit(Counts, "returns", 1).result()
    yield nodes
    nodes.stop()


@pytest.fixture(autouse=True)
def small(house):
    """No test takes the head's memory to what the values would have taken: 1.6 GB for one message."""
    yield
    peak = re.search(r"VmHWM:\s*(\d+) kB", open(f"/proc/{house.running['head'].pid}/status").read())
    assert int(peak[1]) < 600_000


def headers(nodes):
    return {"Authorization": f"Bearer {nodes.keys['admin_key']}", "A2A-Version": "1.0", "Content-Type": "application/json"}


def test_a_request_of_too_many_values_is_refused_by_http(house):
    params = '{"message": {"messageId": "%s", "role": "ROLE_USER", "parts": [{"data": [' + MANY + "]}]}}"
    rpc = '{"jsonrpc": "2.0", "id": 7, "method": "%s", "params": ' + params + "}"
    chat = '{"model": "x", "messages": [{"role": "user", "content": [' + MANY + "]}]}"
    with httpx.Client(base_url=f"http://{house.keys['address']}", headers=headers(house), timeout=60) as web:
        for path, body in (
            ("/a2a/echo/message:send", params % "a"),
            ("/a2a/echo/message:stream", params % "b"),
            ("/a2a/echo", rpc % ("SendMessage", "c")),
            ("/a2a/echo", rpc % ("SendStreamingMessage", "d")),
            ("/a2a/echo", rpc % ("message/send", "e")),
            ("/v1/chat/completions", chat),
            ("/v1/responses", '{"model": "x", "input": [' + MANY + "]}"),
        ):
            answer = web.post(path, content=body)
            assert "too many values" in answer.text and "error" in answer.json(), (path, answer.status_code, answer.text[:500])
        assert web.get("/a2a/echo/tasks").json()["totalSize"] == 0
        # As many bytes of text are taken.
        said = json.dumps({"message": {"messageId": "f", "role": "ROLE_USER", "parts": [{"text": MANY}]}})
        assert web.post("/a2a/echo/message:send", content=said).status_code == 200


GRPC = """
import sys, grpc
from google.protobuf.struct_pb2 import ListValue, Value
from a2a.types import a2a_pb2, a2a_pb2_grpc
one = Value(); one.struct_value.fields["a"].number_value = 0
data = Value(list_value=ListValue(values=[one] * int(sys.argv[3])))
message = a2a_pb2.Message(message_id="g", role=a2a_pb2.ROLE_USER, parts=[a2a_pb2.Part(data=data)])
request = a2a_pb2.SendMessageRequest(tenant="echo", message=message)
options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
stub = a2a_pb2_grpc.A2AServiceStub(grpc.insecure_channel(sys.argv[1], options))
metadata = [("authorization", f"Bearer {sys.argv[2]}"), ("a2a-version", "1.0")]
try:
    print("taken", stub.SendMessage(request, metadata=metadata, timeout=60).task.id)
    print("taken", sum(1 for _ in stub.SendStreamingMessage(request, metadata=metadata, timeout=60)))
except grpc.RpcError as error:
    print(error.code().name, error.details())
"""


def test_a_request_of_too_many_values_is_refused_by_grpc(house):
    def said(count):
        run = [sys.executable, "-c", GRPC, house.keys["address"], house.keys["admin_key"], str(count)]
        done = subprocess.run(run, env=dict(os.environ), capture_output=True, text=True, timeout=120)
        return done.stdout + done.stderr

    assert "INVALID_ARGUMENT the request has too many values" in said(1_000_000)
    assert said(1_000).count("taken") == 2


def test_an_answer_of_too_many_values_fails_its_task_with_the_reason(house):
    count = 1_000_000
    for method in ("returns", "yields", "asks"):
        task = covey.submit(Counts, method, count)
        with pytest.raises(covey.CoveyError, match="too many values.*64 MiB"):
            task.result(timeout=120)
    with pytest.raises(covey.CoveyError, match="too many values"):
        covey.NamedAgent("echo").submit(many(count)).result(timeout=120)
    # What is between Python and Python is no JSON.
    assert covey.submit(Counts, "hears", many(count)).result(timeout=120) == count
    assert len(Counts.remote().returns.remote(count).result()) == count
    assert covey.submit(Counts, "returns", 10_000).result() == many(10_000)
