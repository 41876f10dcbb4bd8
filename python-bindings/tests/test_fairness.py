"""One caller sends more than fits: the others are served, and it is told so."""

import contextlib
import http.client
import json
import selectors
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from a2a.types import Message, Part, Role, SendMessageRequest
from a2a.types.a2a_pb2_grpc import A2AServiceStub
from conftest import Nodes, eventually
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from test_callers import rpc, send, web
from test_turns import made


class Narrow:
    """One at a time; each writes its name to a file."""

    async def run(self, text: str) -> str:
        import asyncio
        import os

        file, name = text.split()[:2]
        while not os.path.exists(file):
            await asyncio.sleep(0.01)
        with open(file, "a") as log:
            log.write(f"{name}\n")
        await asyncio.sleep(0.01)
        return name


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """An agent with one turn, and two callers."""
    nodes = Nodes(tmp_path_factory.mktemp("fair"))
    nodes.head("--push-allow", "127.0.0.0/8")
    nodes.worker("w1", "--cpus", "2")
    session = nodes.connect()
    nodes.live(1)
    nodes.agent = made(Narrow, pool=1).register()
    session.close()

    def key(caller):
        out = nodes.cli("key", "add", caller)
        assert out.returncode == 0, out.stderr
        return out.stdout.strip()

    nodes.loud, nodes.quiet = key("loud"), key("quiet")
    nodes.url = f"http://{nodes.keys['address']}"
    yield nodes
    nodes.stop()


def later(nodes, key, text):
    return send(nodes, key, nodes.agent, text, returnImmediately=True)["task"]["id"]


def test_another_callers_request_does_not_wait_behind_all_of_one(house, tmp_path):
    gate = tmp_path / "gate"
    for n in range(200):
        later(house, house.loud, f"{gate} loud-{n}")
    asked = [later(house, house.quiet, f"{gate} quiet-{n}") for n in range(3)]
    gate.touch()

    def done(task):
        task = rpc(house, house.quiet, house.agent, "GetTask", {"id": task})["result"]
        return task["status"]["state"] == "TASK_STATE_COMPLETED"

    for task in asked:
        eventually(lambda task=task: done(task), timeout=60)
    order = gate.read_text().split()
    quiet = [order.index(f"quiet-{n}") for n in range(3)]
    # One ran when the others came; from then on the callers take turns.
    assert quiet == [2, 4, 6] or quiet == [1, 3, 5], order[:20]
    eventually(lambda: len(gate.read_text().split()) == 203, timeout=60)
    loud = [name for name in gate.read_text().split() if name.startswith("loud")]
    assert loud == [f"loud-{n}" for n in range(200)], "a caller's own requests keep their order"


def test_large_requests_of_one_caller_wait_for_each_other_and_too_many_are_refused(house, tmp_path):
    gate = tmp_path / "gate"

    def ask(number):
        parts = [{"text": f"{gate} loud-{number} " + "x" * (1 << 20)}]
        asked = {"message": {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": parts}}
        with web(house, house.loud) as client:
            return client.post(f"/a2a/{house.agent}/message:send", json=asked, headers={"A2A-Version": "1.0"})

    with ThreadPoolExecutor(100) as many:
        asked = [many.submit(ask, number) for number in range(100)]
        # They wait for the gate, so that few of them are answered before all came.
        eventually(lambda: sum(one.done() for one in asked) >= 10, timeout=60)
        refused = next(one.result() for one in asked if one.done())
        assert refused.status_code == 429 and "large requests of `loud`" in refused.text, refused.text[:500]
        assert refused.headers["retry-after"] == "1"
        assert later(house, house.quiet, f"{gate} quiet")
        gate.touch()
        answers = [one.result().status_code for one in asked]
    assert set(answers) == {200, 429} and answers.count(200) >= 64
    eventually(lambda: len(gate.read_text().split()) == answers.count(200) + 1, timeout=60)


def test_a_caller_has_so_much_of_the_disk_and_no_more(tmp_path):
    nodes = Nodes(tmp_path)
    try:
        nodes.head("--caller-gb", "0.001")
        nodes.worker("w1", "--cpus", "1")
        keys = {caller: nodes.cli("key", "add", caller).stdout.strip() for caller in ("loud", "quiet")}
        nodes.url = f"http://{nodes.keys['address']}"

        def ask(caller, text, message=None):
            asked = {"message": {"messageId": message or uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": text}]}}
            with web(nodes, keys[caller]) as client:
                return client.post("/a2a/echo/message:send", json=asked, headers={"A2A-Version": "1.0"})

        first = uuid.uuid4().hex
        known = ask("loud", "x" * 300_000, first)
        assert known.status_code == 200, known.text[:500]
        # What is in the log alone is not counted yet.
        refused = eventually(lambda: (answer := ask("loud", "x" * 300_000)).status_code == 429 and answer)
        assert "on disk, of 0.001 GB that it may have" in refused.text and "retry-after" in refused.headers
        assert ask("quiet", "hi").status_code == 200
        again = ask("loud", "x" * 300_000, first)
        assert again.status_code == 200 and again.json()["task"]["id"] == known.json()["task"]["id"], "a retry makes nothing new"
        # The bound holds over a restart, and a larger one opens the door again.
        nodes.kill9("head")
        nodes.head("--caller-gb", "0.001")
        eventually(lambda: ask("quiet", "hi").status_code == 200)
        assert ask("loud", "hi").status_code == 429
        nodes.kill9("head")
        nodes.head("--caller-gb", "1")
        eventually(lambda: ask("loud", "hi").status_code == 200)
    finally:
        nodes.stop()


class Long:
    """Says much, item by item."""

    async def run(self, text: str):
        for number in range(int(text)):
            yield f"{number:0100}"


def test_a_task_that_says_much_does_not_hold_up_another(house):
    def ask(key, text, **configuration):
        message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": text}]}
        return rpc(house, key, "echo", "SendMessage", {"message": message, "configuration": configuration})["result"]["task"]

    long = ask(house.loud, "word " * 1_000_000, returnImmediately=True)["id"]
    states = lambda: rpc(house, house.loud, "echo", "GetTask", {"id": long, "historyLength": 0})["result"]["status"]["state"]
    eventually(lambda: states() == "TASK_STATE_WORKING")
    assert ask(house.quiet, "hi")["status"]["state"] == "TASK_STATE_COMPLETED"
    # Its words are not all before the other's one.
    assert states() == "TASK_STATE_WORKING"
    eventually(lambda: states() == "TASK_STATE_COMPLETED", timeout=60)


def test_a_long_answer_of_python_is_whole(house):
    session = house.connect()
    agent = made(Long).register()
    session.close()
    # 4 MiB in the log: its process waits for the head a few times.
    task = send(house, house.quiet, agent, "40000")["task"]
    assert task["status"]["state"] == "TASK_STATE_COMPLETED"
    text = "".join(part["text"] for part in task["artifacts"][0]["parts"])
    assert text == "".join(f"{number:0100}" for number in range(40_000))


def told_by_grpc(error):
    """The details of a refusal, by their types."""
    (body,) = [value for name, value in error.trailing_metadata() if name == "grpc-status-details-bin"]
    details, said = Status.FromString(body).details, {}
    for detail in details:
        for kind in (RetryInfo, ErrorInfo):
            if detail.Is(kind.DESCRIPTOR):
                said[kind] = kind()
                detail.Unpack(said[kind])
    return said


def test_the_one_who_sends_too_much_is_told_so_by_each_protocol(house, tmp_path):
    gate = tmp_path / "never"
    message = lambda size: {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": f"{gate} x " + "x" * size}]}
    asked = lambda size: {"message": message(size), "configuration": {"returnImmediately": True}}
    tasks = []
    # Not by the number of its tasks, which would take a while, but by what they weigh.
    for _ in range(40):
        answer = rpc(house, house.loud, house.agent, "SendMessage", asked(16 << 20))
        if "error" in answer:
            break
        tasks.append(answer["result"]["task"]["id"])
    assert 10 < len(tasks) < 40, len(tasks)
    assert answer["error"]["code"] == -32603
    about = {detail["@type"].rsplit(".", 1)[1]: detail for detail in answer["error"]["data"]}
    assert about["ErrorInfo"]["reason"] == "RESOURCE_EXHAUSTED"
    assert about["RetryInfo"]["retryDelay"] == "1s"
    with web(house, house.loud) as client:
        refused = client.post(f"/a2a/{house.agent}/message:send", json=asked(16 << 20), headers={"A2A-Version": "1.0"})
        assert refused.status_code == 429, refused.text[:500]
        assert refused.headers["retry-after"] == "1"
        old = {"message": {"kind": "message", "messageId": "m", "role": "user", "parts": [{"kind": "text", "text": "x" * (16 << 20)}]}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": old}
        answer = client.post(f"/a2a/{house.agent}", json=body)
        assert answer.json()["error"]["data"]["retryAfter"] == 1, answer.text[:500]
    with grpc.insecure_channel(house.keys["address"]) as channel:
        text = Message(message_id=uuid.uuid4().hex, role=Role.ROLE_USER, parts=[Part(text="x" * (16 << 20))])
        asks = SendMessageRequest(tenant=house.agent, message=text)
        with pytest.raises(grpc.RpcError) as refused:
            A2AServiceStub(channel).SendMessage(asks, metadata=[("authorization", f"Bearer {house.loud}"), ("a2a-version", "1.0")], timeout=60)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, refused.value
    said = told_by_grpc(refused.value)
    assert said[RetryInfo].retry_delay.seconds == 1 and said[ErrorInfo].reason == "RESOURCE_EXHAUSTED"
    # The others are taken, and it is again once what it asked for has ended.
    assert later(house, house.quiet, f"{gate} quiet")
    for task in tasks:
        assert "result" in rpc(house, house.loud, house.agent, "CancelTask", {"id": task})
    assert later(house, house.loud, f"{gate} loud")


def http_answer(connection):
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer


def test_a_client_of_openais_that_sends_too_much_is_told_so(house):
    key = house.cli("key", "add", "talker", "--models").stdout.strip()
    host, port = house.keys["address"].rsplit(":", 1)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    begun = (head + "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{").encode()
    with contextlib.ExitStack() as open_ones, selectors.DefaultSelector() as answered:
        # Each says that it is large, and no more: those that have a place keep it for a while.
        for _ in range(128):
            one = open_ones.enter_context(socket.create_connection((host, int(port))))
            one.sendall(begun)
            answered.register(one, selectors.EVENT_READ)
        ready = eventually(lambda: answered.select(0))
        answer = http_answer(ready[0][0].fileobj)
        text = answer.read()
    assert answer.status == 429 and answer.headers["retry-after"] == "1"
    error = json.loads(text)["error"]
    assert error["type"] == "rate_limit_error" and "64 large requests of `talker`" in error["message"]


def test_a_caller_has_so_many_webhooks_and_no_more(house, tmp_path):
    gate = tmp_path / "never"
    tasks = [later(house, house.loud, f"{gate} hooked-{n}") for n in range(126)]
    # Nobody listens there, so that none of them is ever told.
    made, hook = 0, {"url": "http://127.0.0.1:9/"}
    with web(house, house.loud) as client:
        for number in range(len(tasks) * 16):
            path = f"/a2a/{house.agent}/tasks/{tasks[number // 16]}/pushNotificationConfigs"
            answer = client.post(path, json={**hook, "id": f"h{number}"}, headers={"A2A-Version": "1.0"})
            if answer.status_code != 200:
                break
            made += 1
    assert made == 2_000, (made, answer.text)
    assert answer.status_code == 429 and "2000 webhooks of `loud`" in answer.text
    other = later(house, house.quiet, f"{gate} quiet")
    config = {**hook, "taskId": other, "id": "h"}
    assert "result" in rpc(house, house.quiet, house.agent, "CreateTaskPushNotificationConfig", config)
    for task in tasks:
        rpc(house, house.loud, house.agent, "CancelTask", {"id": task})


def test_a_route_that_is_not_there_is_not_found(house):
    with web(house, house.keys["admin_key"]) as client:
        for path in ("/v1/batches", "/nothing", "/a2a/echo/nothing/at/all"):
            answer = client.get(path)
            assert answer.status_code == 404, (path, answer.status_code, answer.headers)
            assert answer.headers["content-type"].startswith("application/json"), path
        assert "there is no" in client.get("/v1/batches").json()["error"]["message"]
