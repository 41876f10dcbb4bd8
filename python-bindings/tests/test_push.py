"""Push notifications, signed and extended cards, extensions: what A2A has beside sending and reading."""

import concurrent.futures
import contextlib
import hashlib
import http.server
import json
import threading
import time
import uuid

import httpx
import jwt
import pytest
from conftest import eventually
from test_clients import client_1_3
from test_turns import made

from covey import Context


class Receiver:
    """A webhook: keeps what it is told, and answers as `answers` says, then 200."""

    def __init__(self, port=0):
        self.told, self.answers = [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status, headers = outer.answers.pop(0) if outer.answers else (200, {})
                if status == 200:
                    outer.told.append((self.headers, body))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def events(self):
        return [json.loads(body) for _, body in self.told]

    def ids(self):
        return [headers["A2A-Notification-Id"] for headers, _ in self.told]

    def state(self):
        states = [e["statusUpdate"]["status"]["state"] for e in self.events() if "statusUpdate" in e]
        return states[-1] if states else None

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


@contextlib.contextmanager
def http_to(cluster):
    headers = {"Authorization": f"Bearer {cluster.keys['admin_key']}"}
    with httpx.Client(base_url=f"http://{cluster.keys['address']}", headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
def web(cluster):
    with http_to(cluster) as client:
        yield client


def rpc(web, path, method, params, version="1.0", headers=None):
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return web.post(path, json=body, headers={"A2A-Version": version, **(headers or {})})


def send(web, agent, text, hook=None, **configuration):
    message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": text}]}
    if hook is not None:
        configuration["taskPushNotificationConfig"] = hook
    answer = rpc(web, f"/a2a/{agent}", "SendMessage", {"message": message, "configuration": configuration}).json()
    return answer["result"]["task"] if "result" in answer else answer["error"]


class Counter:
    async def run(self, text: str, ctx: Context):
        for n in range(int(text)):
            yield f"{n} "
        if text == "7":
            await ctx.ask("more?")
            yield "end"


def gathered(events):
    """What a receiver makes of its notifications."""
    texts = {}
    for event in events:
        if "artifactUpdate" in event:
            update = event["artifactUpdate"]
            id, text = update["artifact"]["artifactId"], "".join(p["text"] for p in update["artifact"]["parts"])
            texts[id] = texts.get(id, "") + text if update.get("append") else text
    return texts


def test_a_webhook_is_told_everything_in_order_and_can_check_who_tells_it(web, cluster, receiver):
    hook = {"url": receiver.url, "token": "t0k", "authentication": {"scheme": "Basic", "credentials": "YTpi"}}
    task = send(web, made(Counter).register(), "500", hook)
    assert task["status"]["state"] == "TASK_STATE_COMPLETED"
    eventually(lambda: receiver.state() == "TASK_STATE_COMPLETED")
    events = receiver.events()
    assert "task" in events[0] and list(gathered(events).values()) == ["".join(f"{n} " for n in range(500))]
    places = [tuple(int(n) for n in id.rsplit("/", 1)[1].split(".")) for id in receiver.ids()]
    assert places == sorted(set(places)), "each place once, in order"
    with httpx.Client(base_url=f"http://{cluster.keys['address']}") as stranger:
        keys = jwt.PyJWKSet.from_dict(stranger.get("/.well-known/jwks.json").json())
    for headers, body in receiver.told:
        assert headers["X-A2A-Notification-Token"] == headers["A2A-Notification-Token"] == "t0k"
        assert headers["Authorization"] == "Basic YTpi" and headers["Content-Type"] == "application/a2a+json"
        signature = headers["A2A-Notification-Signature"]
        key = keys[jwt.get_unverified_header(signature)["kid"]]
        claims = jwt.decode(signature, key, algorithms=["EdDSA"], audience=f"http://127.0.0.1:{receiver.port}")
        assert (claims["sub"], claims["jti"]) == (task["id"], headers["A2A-Notification-Id"])
        assert claims["request_body_sha256"] == hashlib.sha256(body).hexdigest()


def test_webhooks_take_no_proxy_of_the_environment(nodes, receiver):
    proxy = Receiver()
    try:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            nodes.env[name] = nodes.env[name.upper()] = f"http://127.0.0.1:{proxy.port}"
        nodes.env.pop("no_proxy", None), nodes.env.pop("NO_PROXY", None)
        nodes.head("--push-allow", "127.0.0.0/8")
        nodes.worker("w1", "--cpus", "1")
        nodes.connect()
        nodes.live(1)
        with http_to(nodes) as client:
            send(client, "echo", "hello", {"url": receiver.url})
        eventually(lambda: receiver.state() == "TASK_STATE_COMPLETED")
        assert not proxy.told
    finally:
        proxy.close()


def test_a_task_that_ends_at_once_is_told_too(cluster, receiver):
    """Its webhook is kept before anybody else hears of the task, whose end may be known before its beginning is on disk."""
    name = made(Counter).register()

    def ask(_):
        with http_to(cluster) as web:
            return [send(web, name, "1", {"url": receiver.url})["id"] for _ in range(30)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tasks = {task for asked in pool.map(ask, range(8)) for task in asked}
    ended = lambda: {e["statusUpdate"]["taskId"] for e in receiver.events() if "COMPLETED" in json.dumps(e.get("statusUpdate", ""))}
    eventually(lambda: ended() == tasks)


def test_a_receiver_that_fails_is_tried_again_and_one_that_refuses_is_a_dead_letter(web, receiver):
    receiver.answers = [(503, {}), (429, {"Retry-After": "1"}), (500, {})]
    name = made(Counter).register()
    began = time.monotonic()
    send(web, name, "3", {"url": receiver.url})
    eventually(lambda: receiver.state() == "TASK_STATE_COMPLETED")
    assert time.monotonic() - began > 2, "it waits before it tries again"
    assert len(receiver.ids()) == len(set(receiver.ids())) and "task" in receiver.events()[0]
    receiver.told.clear()
    receiver.answers = [(410, {})]
    task = send(web, name, "2", {"url": receiver.url, "id": "gone"})
    mine = lambda state: [h for h in web.get("/v1/push-notifications", params={"state": state}).json()["hooks"] if h["task"] == task["id"]]
    (dead,) = eventually(lambda: mine("dead"))
    assert dead["error"] == "the receiver answered 410 Gone" and dead["url"] == receiver.url
    assert not receiver.told, "nothing overtakes what was not delivered"
    assert web.post(f"/v1/push-notifications/{task['id']}/gone/replay").json()["state"] == "live"
    eventually(lambda: receiver.state() == "TASK_STATE_COMPLETED")
    assert list(gathered(receiver.events()).values()) == ["0 1 "]
    assert eventually(lambda: mine("done")) and not mine("dead")
    assert web.post(f"/v1/push-notifications/{task['id']}/none/replay").status_code == 404


def test_webhooks_outlive_the_head(nodes):
    nodes.head("--push-allow", "127.0.0.0/8")
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)
    name = made(Counter).register()
    receiver = Receiver()
    with http_to(nodes) as web:
        task = send(web, name, "7", {"url": receiver.url, "id": "h"})
        assert task["status"]["state"] == "TASK_STATE_INPUT_REQUIRED"
        eventually(lambda: receiver.state() == "TASK_STATE_INPUT_REQUIRED")
        time.sleep(0.3)  # how far it was told is written a moment later
        before, port = receiver.ids(), receiver.port
        receiver.close()
        message = {"messageId": "m2", "taskId": task["id"], "role": "ROLE_USER", "parts": [{"text": "yes"}]}
        rpc(web, f"/a2a/{name}", "SendMessage", {"message": message})
    nodes.kill9("head")
    nodes.head("--push-allow", "127.0.0.0/8")
    receiver = Receiver(port)
    eventually(lambda: receiver.state() == "TASK_STATE_COMPLETED")
    assert not set(before) & set(receiver.ids()), "what was delivered is not delivered again"
    assert list(gathered(receiver.events()).values()) == ["end"]
    receiver.close()


def test_webhooks_inside_are_refused_as_shipped(nodes):
    nodes.head()
    with http_to(nodes) as web:
        for url in ("http://127.0.0.1:9/x", "https://10.0.0.1/x", "https://[::1]/", "http://example.com/", "https://169.254.169.254/", "file:///etc/passwd", "nonsense"):
            error = send(web, "echo", "x", {"url": url})
            assert error["code"] == -32602 and "url" in error["message"], (url, error)
        assert rpc(web, "/a2a/echo", "ListTasks", {}).json()["result"]["totalSize"] == 0, "a refused request does nothing"


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON", "GRPC"])
async def test_configurations_of_webhooks_by_every_binding(cluster, web, binding):
    from a2a.types import (
        DeleteTaskPushNotificationConfigRequest,
        GetTaskPushNotificationConfigRequest,
        ListTaskPushNotificationConfigsRequest,
        TaskPushNotificationConfig,
    )
    from a2a.utils.errors import TaskNotFoundError

    name = made(Counter).register()
    task = send(web, name, "7")
    async with client_1_3(cluster, f"/a2a/{name}", binding) as client:
        for id in ("a", "b"):
            config = TaskPushNotificationConfig(task_id=task["id"], id=id, url=f"https://example.com/{id}", token="x")
            made_of = await client.create_task_push_notification_config(config)
            assert (made_of.id, made_of.task_id, made_of.url, made_of.token) == (id, task["id"], config.url, "x")
        got = await client.get_task_push_notification_config(GetTaskPushNotificationConfigRequest(task_id=task["id"], id="b"))
        assert got.url == "https://example.com/b"
        everything = ListTaskPushNotificationConfigsRequest(task_id=task["id"])
        assert [c.id for c in (await client.list_task_push_notification_configs(everything)).configs] == ["a", "b"]
        gone = DeleteTaskPushNotificationConfigRequest(task_id=task["id"], id="a")
        await client.delete_task_push_notification_config(gone)
        await client.delete_task_push_notification_config(gone)
        assert [c.id for c in (await client.list_task_push_notification_configs(everything)).configs] == ["b"]
        with pytest.raises(TaskNotFoundError):
            await client.list_task_push_notification_configs(ListTaskPushNotificationConfigsRequest(task_id="none"))


def test_old_clients_are_told_with_whole_tasks(web, receiver):
    name = made(Counter).register()
    hook = {"id": "old", "url": receiver.url, "token": "t"}
    message = {"kind": "message", "messageId": uuid.uuid4().hex, "role": "user", "parts": [{"kind": "text", "text": "3"}]}
    params = {"message": message, "configuration": {"blocking": True, "pushNotificationConfig": hook}}
    task = rpc(web, f"/a2a/{name}", "message/send", params, "0.3").json()["result"]
    eventually(lambda: receiver.events() and receiver.events()[-1]["status"]["state"] == "completed")
    last = receiver.events()[-1]
    assert last["kind"] == "task" and last["id"] == task["id"] and last["artifacts"][0]["parts"][0]["text"] == "0 1 2 "
    about = {"id": task["id"], "pushNotificationConfigId": "old"}
    got = rpc(web, f"/a2a/{name}", "tasks/pushNotificationConfig/get", about, "0.3").json()["result"]
    assert got == {"taskId": task["id"], "pushNotificationConfig": hook}
    assert rpc(web, f"/a2a/{name}", "tasks/pushNotificationConfig/list", {"id": task["id"]}, "0.3").json()["result"] == [got]
    assert rpc(web, f"/a2a/{name}", "tasks/pushNotificationConfig/delete", about, "0.3").json()["result"] is None


@pytest.mark.parametrize("extended", [False, True])
async def test_cards_are_signed_and_the_sdk_finds_them_good(cluster, web, extended):
    from a2a.types import GetExtendedAgentCardRequest
    from a2a.utils.signing import InvalidSignaturesError, create_signature_verifier

    name = made(Counter, a2a={"version": "3.2", "provider": ("Köhler & Söhne", "https://example.com"), "tags": ["größe"]}).register()
    keys = jwt.PyJWKSet.from_dict(web.get("/.well-known/jwks.json").json())
    verify = create_signature_verifier(lambda kid, jku: keys[kid], ["EdDSA"])
    async with client_1_3(cluster, f"/a2a/{name}") as client:
        card = await client.get_extended_agent_card(GetExtendedAgentCardRequest()) if extended else client._card
        verify(card)
        assert (card.version, card.provider.organization, card.skills[0].tags) == ("3.2", "Köhler & Söhne", ["größe"])
        known = [e.uri for e in card.capabilities.extensions]
        assert known == ["urn:covey:a2a:once:v1", "urn:covey:a2a:events:v1", *(["urn:covey:a2a:skills:v1"] if extended else [])]
        card.description = "another"
        with pytest.raises(InvalidSignaturesError):
            verify(card)


def test_what_a_card_denies_is_refused(web):
    plain = made(Counter, a2a={"streaming": False, "push_notifications": False, "extended_card": False}).register()
    message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "2"}]}
    codes = {
        "SendStreamingMessage": ({"message": message}, -32004),
        "SubscribeToTask": ({"id": "x"}, -32004),
        "GetExtendedAgentCard": ({}, -32004),
        "CreateTaskPushNotificationConfig": ({"taskId": "x", "url": "https://example.com"}, -32003),
        "GetTaskPushNotificationConfig": ({"taskId": "x", "id": "y"}, -32003),
        "ListTaskPushNotificationConfigs": ({"taskId": "x"}, -32003),
        "DeleteTaskPushNotificationConfig": ({"taskId": "x", "id": "y"}, -32003),
    }
    for method, (params, code) in codes.items():
        assert rpc(web, f"/a2a/{plain}", method, params).json()["error"]["code"] == code, method
    assert web.post(f"/a2a/{plain}/message:stream", json={"message": message}).status_code == 400
    capabilities = web.get(f"/a2a/{plain}/.well-known/agent-card.json").json()["capabilities"]
    assert not capabilities["streaming"] and not capabilities["pushNotifications"] and not capabilities["extendedAgentCard"]


def test_extensions_are_negotiated(web):
    uri = "https://example.com/ext/v1"
    name = made(Counter, a2a={"extensions": [{"uri": uri, "required": True, "description": "ours"}]}).register()
    message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "2"}]}
    refused = rpc(web, f"/a2a/{name}", "SendMessage", {"message": message})
    assert refused.json()["error"]["code"] == -32008
    assert web.post(f"/a2a/{name}/message:send", json={"message": message}).json()["error"]["details"][0]["reason"] == "EXTENSION_SUPPORT_REQUIRED"
    for header in ("A2A-Extensions", "X-A2A-Extensions"):
        good = rpc(web, f"/a2a/{name}", "SendMessage", {"message": message}, headers={header: f"urn:other, {uri}"})
        assert "result" in good.json() and good.headers["A2A-Extensions"] == uri
    assert web.get(f"/a2a/{name}/.well-known/agent-card.json").json()["capabilities"]["extensions"][0]["uri"] == uri


def test_the_tenant_of_a_request_names_the_agent(web):
    name = made(Counter).register()
    message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": "2"}]}
    task = rpc(web, "/a2a", "SendMessage", {"tenant": name, "message": message}).json()["result"]["task"]
    assert task["artifacts"][0]["parts"][0]["text"] == "0 1 "
    assert rpc(web, "/a2a", "GetTask", {"tenant": name, "id": task["id"]}).json()["result"]["id"] == task["id"]
    assert rpc(web, "/a2a", "GetTask", {"tenant": "none", "id": task["id"]}).json()["error"]["code"] == -32602
    assert rpc(web, f"/a2a/{name}", "GetTask", {"tenant": "echo", "id": task["id"]}).json()["error"]["code"] == -32602


class Thinker:
    async def run(self, text: str, ctx: Context) -> str:
        return f"{await ctx.llm.complete(text)}"


def test_a_message_names_its_model_and_how_that_chooses_its_words(web):
    uri = "urn:covey:a2a:model:v1"
    for agent in ("assistant", made(Thinker, model="none").register()):

        def answer(asked):
            message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": "hello"}], "metadata": {uri: asked}}
            got = rpc(web, f"/a2a/{agent}", "SendMessage", {"message": message}, headers={"A2A-Extensions": uri})
            assert got.headers["A2A-Extensions"] == uri
            return got.json()

        short = answer({"model": "tiny", "sampling": {"max_tokens": 2, "temperature": 1, "seed": 5}})["result"]["task"]
        longer = answer({"model": "tiny", "sampling": {"max_tokens": 12, "temperature": 1, "seed": 5}})["result"]["task"]
        text = [task["artifacts"][0]["parts"][0]["text"] for task in (short, longer)]
        assert text[1].startswith(text[0]) and len(text[1]) > len(text[0]) > 0
        assert answer({"model": "nothing-like-that"})["result"]["task"]["status"]["state"] == "TASK_STATE_FAILED"
        for wrong in ({"sampling": {"temprature": 1}}, {"sampling": {"max_tokens": "many"}}, {"modle": "tiny"}, "tiny"):
            assert answer(wrong)["error"]["code"] == -32602, wrong
