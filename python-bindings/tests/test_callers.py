"""Callers that do not own the cluster: which agents are there for them, and that nobody sees another's tasks, by any way in."""

import contextlib
import json
import time
import uuid

import grpc.aio
import httpx
import pytest
from conftest import Nodes, eventually
from test_clients import KeyOnCalls, KeyOnStreams
from test_turns import Painter, made

import covey


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A cluster with an agent that asks, one that is hidden, and two callers; alice has a task that waits."""
    nodes = Nodes(tmp_path_factory.mktemp("house"))
    nodes.head("--push-allow", "127.0.0.0/8")
    nodes.worker("w1", "--cpus", "2")
    session = nodes.connect()
    nodes.live(1)
    nodes.agent, nodes.hidden = made(Painter).register(), made(Painter).register()
    session.close()

    def key(caller, *args):
        out = nodes.cli("key", "add", caller, *args)
        assert out.returncode == 0, out.stderr
        return out.stdout.strip()

    nodes.alice, nodes.bob = key("alice", "--agents", f"{nodes.agent},echo"), key("bob")
    nodes.url = f"http://{nodes.keys['address']}"
    task = send(nodes, nodes.alice, nodes.agent, "paint", returnImmediately=False)["task"]
    assert task["status"]["state"] == "TASK_STATE_INPUT_REQUIRED"
    nodes.task = task["id"]
    hook = {"taskId": task["id"], "url": "http://127.0.0.1:9/hook", "id": "h"}
    assert "result" in rpc(nodes, nodes.alice, nodes.agent, "CreateTaskPushNotificationConfig", hook)
    yield nodes
    nodes.stop()


def web(nodes, key):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=nodes.url, headers=headers, timeout=30)


def rpc(nodes, key, agent, method, params, version="1.0"):
    with web(nodes, key) as client:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = client.post(f"/a2a/{agent}", json=body, headers={"A2A-Version": version})
        text = answer.text
        if text.startswith(("id:", "data:", ":")):
            text = next(line[6:] for line in text.splitlines() if line.startswith("data: "))
        return json.loads(text)


def send(nodes, key, agent, text, **configuration):
    message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": text}]}
    return rpc(nodes, key, agent, "SendMessage", {"message": message, "configuration": configuration})["result"]


def said(task, old=False):
    if old:
        return {"message": {"kind": "message", "messageId": uuid.uuid4().hex, "role": "user", "taskId": task, "parts": [{"kind": "text", "text": "red"}]}}
    return {"message": {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "taskId": task, "parts": [{"text": "red"}]}}


def operations(task):
    """Every operation that names a task: JSON-RPC's of both versions."""
    hook = {"taskId": task, "url": "http://127.0.0.1:9/mine", "id": "mine"}
    yield from [
        ("SendMessage", said(task), "1.0"),
        ("SendStreamingMessage", said(task), "1.0"),
        ("GetTask", {"id": task}, "1.0"),
        ("CancelTask", {"id": task}, "1.0"),
        ("SubscribeToTask", {"id": task}, "1.0"),
        ("CreateTaskPushNotificationConfig", hook, "1.0"),
        ("GetTaskPushNotificationConfig", {"taskId": task, "id": "h"}, "1.0"),
        ("ListTaskPushNotificationConfigs", {"taskId": task}, "1.0"),
        ("DeleteTaskPushNotificationConfig", {"taskId": task, "id": "h"}, "1.0"),
        ("message/send", said(task, True), "0.3"),
        ("message/stream", said(task, True), "0.3"),
        ("tasks/get", {"id": task}, "0.3"),
        ("tasks/cancel", {"id": task}, "0.3"),
        ("tasks/resubscribe", {"id": task}, "0.3"),
        ("tasks/pushNotificationConfig/set", {"taskId": task, "pushNotificationConfig": {"url": "http://127.0.0.1:9/"}}, "0.3"),
        ("tasks/pushNotificationConfig/get", {"id": task, "pushNotificationConfigId": "h"}, "0.3"),
        ("tasks/pushNotificationConfig/list", {"id": task}, "0.3"),
        ("tasks/pushNotificationConfig/delete", {"id": task, "pushNotificationConfigId": "h"}, "0.3"),
    ]


def still_waits(house):
    task = rpc(house, house.alice, house.agent, "GetTask", {"id": house.task})["result"]
    hooks = rpc(house, house.alice, house.agent, "ListTaskPushNotificationConfigs", {"taskId": house.task})["result"]["configs"]
    return task["status"]["state"] == "TASK_STATE_INPUT_REQUIRED" and [hook["id"] for hook in hooks] == ["h"]


@pytest.mark.parametrize("operation", list(operations("?")), ids=lambda operation: operation[0])
def test_anothers_task_is_not_there_by_json_rpc(house, operation):
    method, params, version = next(o for o in operations(house.task) if o[0] == operation[0])
    # The owner of the cluster is somebody else too.
    for key in (house.bob, house.keys["admin_key"]):
        assert rpc(house, key, house.agent, method, params, version)["error"]["code"] == -32001
    assert still_waits(house)


@pytest.mark.parametrize("version", ["", "v1/"])
def test_anothers_task_is_not_there_by_http(house, version):
    base, hooks = f"/a2a/{house.agent}/{version}tasks/{house.task}", "/pushNotificationConfigs"
    new = {"message": said(house.task)["message"]}
    old = {"message": {"messageId": "m", "role": "ROLE_USER", "taskId": house.task, "content": [{"text": "red"}]}}
    hook = {"url": "http://127.0.0.1:9/mine"}
    asks = [
        ("POST", f"/a2a/{house.agent}/{version}message:send", old if version else new),
        ("POST", f"/a2a/{house.agent}/{version}message:stream", old if version else new),
        ("GET", base, None),
        ("POST", f"{base}:cancel", {}),
        ("GET", f"{base}:subscribe", None),
        ("POST", base + hooks, {"pushNotificationConfig": hook} if version else hook),
        ("GET", base + hooks, None),
        ("GET", f"{base}{hooks}/h", None),
        ("DELETE", f"{base}{hooks}/h", None),
    ]
    with web(house, house.bob) as client:
        for method, path, body in asks:
            answer = client.request(method, path, json=body, headers={"A2A-Version": "0.3" if version else "1.0"})
            assert answer.status_code == 404, (method, path, answer.text)
        if not version:
            assert client.get(f"/a2a/{house.agent}/tasks", headers={"A2A-Version": "1.0"}).json()["totalSize"] == 0
    assert still_waits(house)


@contextlib.asynccontextmanager
async def channel(house, key):
    interceptors = [KeyOnCalls(key), KeyOnStreams(key)]
    async with grpc.aio.insecure_channel(house.keys["address"], interceptors=interceptors) as opened:
        yield opened


async def test_anothers_task_is_not_there_by_grpc(house):
    from a2a.types import a2a_pb2, a2a_pb2_grpc

    task, tenant = house.task, house.agent
    message = a2a_pb2.Message(message_id="m", role="ROLE_USER", task_id=task, parts=[a2a_pb2.Part(text="red")])
    async with channel(house, house.bob) as opened:
        stub = a2a_pb2_grpc.A2AServiceStub(opened)
        send = a2a_pb2.SendMessageRequest(tenant=tenant, message=message)
        hook = {"tenant": tenant, "task_id": task, "id": "h"}
        asks = [
            stub.SendMessage(send),
            stub.GetTask(a2a_pb2.GetTaskRequest(tenant=tenant, id=task)),
            stub.CancelTask(a2a_pb2.CancelTaskRequest(tenant=tenant, id=task)),
            stub.CreateTaskPushNotificationConfig(a2a_pb2.TaskPushNotificationConfig(url="http://127.0.0.1:9/", **hook)),
            stub.GetTaskPushNotificationConfig(a2a_pb2.GetTaskPushNotificationConfigRequest(**hook)),
            stub.ListTaskPushNotificationConfigs(a2a_pb2.ListTaskPushNotificationConfigsRequest(tenant=tenant, task_id=task)),
            stub.DeleteTaskPushNotificationConfig(a2a_pb2.DeleteTaskPushNotificationConfigRequest(**hook)),
            stub.SendStreamingMessage(send).read(),
            stub.SubscribeToTask(a2a_pb2.SubscribeToTaskRequest(tenant=tenant, id=task)).read(),
        ]
        for ask in asks:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask
            assert refused.value.code() == grpc.StatusCode.NOT_FOUND, refused.value
        listed = await stub.ListTasks(a2a_pb2.ListTasksRequest(tenant=tenant))
        assert listed.total_size == 0
    assert still_waits(house)


async def test_anothers_task_is_not_there_by_the_old_grpc(house):
    from a2a.compat.v0_3 import a2a_v0_3_pb2 as old
    from a2a.compat.v0_3 import a2a_v0_3_pb2_grpc

    task, name = house.task, f"tasks/{house.task}"
    message = old.Message(message_id="m", role="ROLE_USER", task_id=task, content=[old.Part(text="red")])
    config = old.TaskPushNotificationConfig(push_notification_config=old.PushNotificationConfig(url="http://127.0.0.1:9/"))
    at = {"metadata": (("a2a-agent", house.agent),)}
    hook = f"{name}/pushNotificationConfigs/h"
    async with channel(house, house.bob) as opened:
        stub = a2a_v0_3_pb2_grpc.A2AServiceStub(opened)
        send = old.SendMessageRequest(request=message)
        asks = [
            stub.SendMessage(send, **at),
            stub.GetTask(old.GetTaskRequest(name=name), **at),
            stub.CancelTask(old.CancelTaskRequest(name=name), **at),
            stub.CreateTaskPushNotificationConfig(old.CreateTaskPushNotificationConfigRequest(parent=name, config_id="h", config=config), **at),
            stub.GetTaskPushNotificationConfig(old.GetTaskPushNotificationConfigRequest(name=hook), **at),
            stub.ListTaskPushNotificationConfig(old.ListTaskPushNotificationConfigRequest(parent=name), **at),
            stub.DeleteTaskPushNotificationConfig(old.DeleteTaskPushNotificationConfigRequest(name=hook), **at),
            stub.SendStreamingMessage(send, **at).read(),
            stub.TaskSubscription(old.TaskSubscriptionRequest(name=name), **at).read(),
        ]
        for ask in asks:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask
            assert refused.value.code() == grpc.StatusCode.NOT_FOUND, refused.value
    # Whose task it is, finds it there.
    async with channel(house, house.alice) as opened:
        stub = a2a_v0_3_pb2_grpc.A2AServiceStub(opened)
        found = await stub.GetTask(old.GetTaskRequest(name=name), **at)
        assert found.id == task and found.status.state == old.TASK_STATE_INPUT_REQUIRED
    assert still_waits(house)


def test_an_agent_that_is_not_theirs_is_not_there(house):
    with web(house, house.alice) as client:
        assert {agent["name"] for agent in client.get("/a2a").json()["agents"]} == {house.agent, "echo"}
        assert house.hidden not in client.get("/.well-known/api-catalog").text
        for path in (f"/a2a/{house.hidden}/.well-known/agent-card.json", f"/a2a/{house.hidden}/tasks", "/.well-known/agent-card.json"):
            assert client.get(path).status_code == 404, path
        message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "x"}]}
        # By the request's tenant neither.
        answer = client.post("/a2a", json={"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message, "tenant": house.hidden}})
        assert "error" in answer.json()
    with web(house, house.bob) as client:
        assert client.get(f"/a2a/{house.hidden}/.well-known/agent-card.json").status_code == 200


def test_their_keys_open_nothing_else(house):
    for key in (house.alice, house.bob):
        with web(house, key) as client:
            for path in ("/v1/cluster", "/metrics", "/v1/models"):
                assert client.get(path).status_code == 403, path
        with pytest.raises(covey.CoveyError):
            covey.connect(house.keys["address"], key, reinit=True)
            covey.status()
    with web(house, None) as client:
        assert client.get("/a2a").status_code == 401


def test_keys_come_and_go(house):
    out = house.cli("key", "add", "carol", "--models")
    carol = out.stdout.strip()
    with web(house, carol) as client:
        assert client.get("/v1/models").status_code == 200 and client.get("/v1/cluster").status_code == 403
    known = {json.loads(line)["caller"] for line in house.cli("key", "ls", "--json").stdout.splitlines()}
    assert {"alice", "bob", "carol"} <= known
    assert house.cli("key", "add", "carol").returncode != 0 and house.cli("key", "add", "admin").returncode != 0
    assert house.cli("key", "rm", "carol").returncode == 0 and house.cli("key", "rm", "carol").returncode != 0
    with web(house, carol) as client:
        assert client.get("/a2a").status_code == 401
    # A head that starts again knows the others.
    house.kill9("head")
    house.head("--push-allow", "127.0.0.0/8")
    eventually(lambda: _opens(house, house.bob))
    assert still_waits(house)


def _opens(house, key):
    try:
        with web(house, key) as client:
            return client.get("/a2a").status_code == 200
    except httpx.TransportError:
        return False


MODEL = "urn:covey:a2a:model:v1"


def found_tokens(nodes):
    """Tokens of prompts that models found again, as the head counts them."""
    page = httpx.get(f"{nodes.url}/metrics", headers={"Authorization": f"Bearer {nodes.keys['admin_key']}"}).text
    lines = [line for line in page.splitlines() if line.startswith("covey_model_prefix_tokens_total") and '"found"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A cluster whose model makes one answer at a time, a prompt agent, and three callers, none of whom may name a model."""
    nodes = Nodes(tmp_path_factory.mktemp("models"))
    nodes.head()
    nodes.worker("w1", "--cpus", "2", "--model-running", "1")
    nodes.connect()
    nodes.live(1)
    nodes.url = f"http://{nodes.keys['address']}"
    system = " ".join(f"word{n} is {n * 7}" for n in range(60))
    covey.llm_agent("talker", model="tiny", system=system, concurrency=64, max_tokens=24, temperature=0.0)
    covey.llm_agent("long", model="tiny", concurrency=64, max_tokens=300, ignore_eos=True, temperature=0.0)
    nodes.callers = {}
    for caller in ("alice", "bob", "carol"):
        out = nodes.cli("key", "add", caller, "--agents", "talker,long")
        assert out.returncode == 0, out.stderr
        nodes.callers[caller] = out.stdout.strip()
    yield nodes
    covey.shutdown()
    nodes.stop()


def test_prompt_agents_of_two_callers_share_no_beginnings(models):
    alice, bob = models.callers["alice"], models.callers["bob"]
    ask = lambda key: send(models, key, "talker", "word7")["task"]["status"]["state"]  # noqa: E731
    told = lambda: (time.sleep(2.5), found_tokens(models))[1]  # noqa: E731 - workers tell once a second
    assert ask(alice) == "TASK_STATE_COMPLETED"
    before = told()
    assert ask(alice) == "TASK_STATE_COMPLETED"
    again = told()
    assert again > before, "one caller finds its own"
    assert ask(bob) == "TASK_STATE_COMPLETED"
    assert told() == again, "another does not: it could measure what alice asked"


def test_a_key_without_models_reaches_none_by_metadata(models):
    message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": "x"}]}
    named = {"model": "tiny"}
    for place, metadata in [("request", named), ("message", named), ("request", {MODEL: named}), ("message", {MODEL: named})]:
        params = {"message": {**message, "messageId": uuid.uuid4().hex}}
        (params if place == "request" else params["message"])["metadata"] = metadata
        refused = rpc(models, models.callers["bob"], "talker", "SendMessage", params)
        assert "this key opens none" in json.dumps(refused.get("error")), (place, refused)
    with web(models, models.callers["bob"]) as client:
        for path in ("/v1/models", "/v1/chat/completions", "/v1/responses"):
            assert client.post(path, json={"model": "tiny"}).status_code == 403, path
    # The owner may, and is told that there is none.
    with web(models, models.keys["admin_key"]) as client:
        body = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message, "metadata": {"model": "tiny"}}}
        said = client.post("/a2a/talker", json=body, headers={"A2A-Version": "1.0"}).json()
        assert said["result"]["task"]["status"]["state"] == "TASK_STATE_COMPLETED", said


def test_the_turns_of_a_model_are_fair_between_keys_also_by_way_of_an_agent(models):
    """Whoever asks an agent sixty times at once keeps another waiting for some of them, not for sixty."""
    from concurrent.futures import ThreadPoolExecutor

    order = []

    def ask(name):
        assert send(models, models.callers[name], "long", "word7")["task"]["status"]["state"] == "TASK_STATE_COMPLETED"
        order.append(name)

    # Requests wait at the model, not for a turn of the agent: it has enough of those.
    with ThreadPoolExecutor(61) as pool:
        all_of = [pool.submit(ask, "alice") for _ in range(60)]
        # By then all of them are at the model.
        eventually(lambda: len(order) >= 5)
        all_of.append(pool.submit(ask, "carol"))
        [one.result(120) for one in all_of]
    behind = order[order.index("carol") :]
    # On a busy machine she may be late herself. In one line for all she would be the last.
    assert len(behind) > 4, f"carol was answered as number {order.index('carol') + 1} of 61"
