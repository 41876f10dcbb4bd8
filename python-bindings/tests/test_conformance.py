"""What A2A 1.0 asks of a server, by each binding, against `examples/conformance/agent.py`.

The official kit (a2a-tck) is in no package registry; these are its requirements, written from the specification. The
numbers are the specification's sections.
"""

import importlib.util
import json
import re
import threading
import uuid

import grpc
import httpx
import pytest
from conftest import ROOT, eventually




class Refused(Exception):
    def __init__(self, reason, code):
        super().__init__(f"{reason} ({code})")
        self.reason, self.code = reason, code


class JsonRpc:
    """Operations by JSON-RPC."""

    def __init__(self, nodes, agent, version="1.0"):
        headers = {"Authorization": f"Bearer {nodes.keys['admin_key']}", "A2A-Version": version}
        self.http = httpx.Client(base_url=f"http://{nodes.keys['address']}/a2a/{agent}", headers=headers, timeout=30)

    def call(self, method, params):
        answer = self.http.post("", json={"jsonrpc": "2.0", "id": "x", "method": method, "params": params}).json()
        assert answer["jsonrpc"] == "2.0" and answer["id"] == "x"
        return self.result(answer)

    def result(self, answer):
        if "error" in answer:
            raise Refused(answer["error"]["data"][0]["reason"], answer["error"]["code"])
        return answer["result"]

    def stream(self, method, params):
        with self.http.stream("POST", "", json={"jsonrpc": "2.0", "id": "x", "method": method, "params": params}) as response:
            if "event-stream" not in response.headers["content-type"]:
                self.result(json.loads(response.read()))
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield self.result(json.loads(line[6:]))


class Rest(JsonRpc):
    """Operations by HTTP+JSON."""

    def request(self, method, params):
        params = dict(params)
        match method:
            case "SendMessage" | "SendStreamingMessage":
                return "POST", f"/message:{'send' if method == 'SendMessage' else 'stream'}", {"json": params}
            case "ListTasks":
                return "GET", "/tasks", {"params": params}
            case "GetTask":
                return "GET", f"/tasks/{params.pop('id')}", {"params": params}
            case "CancelTask":
                return "POST", f"/tasks/{params['id']}:cancel", {"json": {}}
            case "SubscribeToTask":
                return "POST", f"/tasks/{params['id']}:subscribe", {"json": {}}
            case "GetExtendedAgentCard":
                return "GET", "/extendedAgentCard", {}
        raise AssertionError(method)

    def result(self, response):
        body = json.loads(response.read())
        if response.status_code >= 400:
            raise Refused(body["error"]["details"][0]["reason"], response.status_code)
        return body

    def call(self, method, params):
        verb, path, about = self.request(method, params)
        return self.result(self.http.request(verb, str(self.http.base_url).rstrip("/") + path, **about))

    def stream(self, method, params):
        verb, path, about = self.request(method, params)
        with self.http.stream(verb, str(self.http.base_url).rstrip("/") + path, **about) as response:
            if "event-stream" not in response.headers["content-type"]:
                self.result(response)
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])


class Grpc:
    """Operations by gRPC, with the official messages."""

    REQUESTS = {
        "SendMessage": "SendMessageRequest", "SendStreamingMessage": "SendMessageRequest", "GetTask": "GetTaskRequest",
        "ListTasks": "ListTasksRequest", "CancelTask": "CancelTaskRequest", "SubscribeToTask": "SubscribeToTaskRequest",
        "GetExtendedAgentCard": "GetExtendedAgentCardRequest",
    }  # fmt: skip

    def __init__(self, nodes, agent, version="1.0"):
        from a2a.types import a2a_pb2, a2a_pb2_grpc

        self.messages, self.agent = a2a_pb2, agent
        self.stub = a2a_pb2_grpc.A2AServiceStub(grpc.insecure_channel(nodes.keys["address"]))
        self.metadata = [("authorization", f"Bearer {nodes.keys['admin_key']}"), ("a2a-version", version)]

    def start(self, method, params):
        from google.protobuf.json_format import ParseDict

        request = ParseDict({"tenant": self.agent, **params}, getattr(self.messages, self.REQUESTS[method])())
        return getattr(self.stub, method)(request, metadata=self.metadata)

    def refused(self, error):
        from google.rpc import error_details_pb2, status_pb2

        packed = dict(error.trailing_metadata()).get("grpc-status-details-bin")
        status = status_pb2.Status.FromString(packed)
        info = error_details_pb2.ErrorInfo()
        next(d for d in status.details if d.Is(info.DESCRIPTOR)).Unpack(info)
        return Refused(info.reason, error.code().name)

    def call(self, method, params):
        from google.protobuf.json_format import MessageToDict

        try:
            return MessageToDict(self.start(method, params))
        except grpc.RpcError as error:
            raise self.refused(error) from error

    def stream(self, method, params):
        from google.protobuf.json_format import MessageToDict

        try:
            for event in self.start(method, params):
                yield MessageToDict(event)
        except grpc.RpcError as error:
            raise self.refused(error) from error


BINDINGS = {"JSON-RPC": JsonRpc, "HTTP+JSON": Rest, "gRPC": Grpc}


@pytest.fixture(scope="module")
def agents(shared):
    """The conformance agents, registered as the example does it."""
    spec = importlib.util.spec_from_file_location("conformance_agent", ROOT / "examples/conformance/agent.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    session = shared.connect()
    shared.live(1)
    module.register()
    session.close()
    return shared


@pytest.fixture(params=BINDINGS)
def wire(agents, request):
    return BINDINGS[request.param](agents, "conformance")


def message(behaviour, **about):
    id = f"{behaviour}-{uuid.uuid4().hex[:8]}"
    return {"message": {"messageId": id, "role": "ROLE_USER", "parts": [{"text": "hello"}], **about}}


def state(task):
    return task["status"]["state"].removeprefix("TASK_STATE_")


def send(wire, behaviour, configuration=None, **about):
    params = message(behaviour, **about)
    if configuration is not None:
        params["configuration"] = configuration
    return wire.call("SendMessage", params)["task"]


def refused(reason, call, *args):
    with pytest.raises(Refused) as told:
        result = call(*args)
        if not isinstance(result, dict):
            list(result)
    assert told.value.reason == reason, told.value


def test_3_1_1_a_send_waits_for_the_end(wire):
    task = send(wire, "tck-complete-task")
    assert state(task) == "COMPLETED" and task["id"] and task["contextId"]
    assert task["status"]["message"]["parts"] == [{"text": "Hello from TCK"}]
    assert task["status"]["message"]["role"] == "ROLE_AGENT" and task["status"]["message"]["messageId"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", task["status"]["timestamp"]), "5.6: UTC, milliseconds"


def test_3_2_2_or_not(wire):
    task = send(wire, "tck-long-running", {"returnImmediately": True})
    assert state(task) in ("SUBMITTED", "WORKING")
    assert eventually(lambda: state(wire.call("GetTask", {"id": task["id"]})) == "COMPLETED")


@pytest.mark.parametrize(
    ("behaviour", "part"),
    [
        ("tck-artifact-text", {"text": "Generated text content"}),
        ("tck-artifact-file", {"raw": "dGNr", "filename": "output.txt", "mediaType": "text/plain"}),
        ("tck-artifact-file-url", {"url": "https://example.com/output.txt", "filename": "output.txt", "mediaType": "text/plain"}),
        ("tck-artifact-data", {"data": {"key": "value", "count": 42}}),
    ],
)
def test_4_1_6_parts_of_all_kinds(wire, behaviour, part):
    (artifact,) = send(wire, behaviour)["artifacts"]
    assert artifact["artifactId"] and artifact["parts"] == [part]


def test_3_1_1_or_a_mere_message(wire):
    params = message("tck-message-response")
    answer = wire.call("SendMessage", params)["message"]
    assert answer["parts"] == [{"text": "Direct message response"}] and answer["role"] == "ROLE_AGENT"
    events = list(wire.stream("SendStreamingMessage", message("tck-message-response")))
    assert [list(event) for event in events] == [["message"]], "3.1.2: exactly one"


@pytest.mark.parametrize(("behaviour", "ends"), [("tck-reject-task", "REJECTED"), ("tck-task-failure", "FAILED")])
def test_4_1_3_bad_ends(wire, behaviour, ends):
    task = send(wire, behaviour)
    assert state(task) == ends and "ed" in task["status"]["message"]["parts"][0]["text"]


def test_3_4_a_task_that_asks_goes_on_in_its_context(wire):
    task = send(wire, "tck-input-required")
    assert state(task) == "INPUT_REQUIRED"
    done = send(wire, "more", taskId=task["id"])
    assert state(done) == "COMPLETED" and done["id"] == task["id"] and done["contextId"] == task["contextId"]
    assert [m["role"] for m in done["history"]] == ["ROLE_USER", "ROLE_AGENT", "ROLE_USER"]
    login = send(wire, "tck-auth-required")
    assert state(login) == "AUTH_REQUIRED"


def test_3_4_ids(wire):
    context = f"ctx-{uuid.uuid4().hex}"
    task = send(wire, "tck-input-required", contextId=context)
    assert task["contextId"] == context
    refused("INVALID_PARAMS", wire.call, "SendMessage", message("x", taskId=task["id"], contextId="another"))
    refused("TASK_NOT_FOUND", wire.call, "SendMessage", message("x", taskId="none"))
    done = send(wire, "tck-complete-task")
    refused("UNSUPPORTED_OPERATION", wire.call, "SendMessage", message("x", taskId=done["id"]))


@pytest.mark.parametrize("lacks", ["messageId", "role", "parts"])
def test_5_7_what_is_required_is_required(wire, lacks):
    params = message("x")
    del params["message"][lacks]
    refused("INVALID_PARAMS", wire.call, "SendMessage", params)
    refused("INVALID_PARAMS", wire.stream, "SendStreamingMessage", params)
    refused("INVALID_PARAMS", wire.call, "SendMessage", {})


def test_3_3_1_a_message_sent_twice_makes_one_task(wire):
    params = message("tck-complete-task")
    assert wire.call("SendMessage", params)["task"]["id"] == wire.call("SendMessage", params)["task"]["id"]


def test_3_2_4_lengths_of_history(wire):
    task = send(wire, "tck-input-required")
    send(wire, "more", taskId=task["id"])
    lengths = {n: len(wire.call("GetTask", {"id": task["id"], "historyLength": n}).get("history", [])) for n in (0, 1, 2, 9)}
    assert lengths == {0: 0, 1: 1, 2: 2, 9: 3}
    assert wire.call("GetTask", {"id": task["id"], "historyLength": 1})["history"][0]["messageId"].startswith("more")
    refused("INVALID_PARAMS", wire.call, "GetTask", {"id": task["id"], "historyLength": -1})
    assert "history" not in send(wire, "tck-complete-task", {"historyLength": 0})
    refused("TASK_NOT_FOUND", wire.call, "GetTask", {"id": "none"})


def test_3_1_4_lists(wire):
    context = f"ctx-{uuid.uuid4().hex}"
    made = [send(wire, "tck-artifact-text", contextId=context)["id"] for _ in range(3)]
    page = wire.call("ListTasks", {"contextId": context, "pageSize": 2})
    assert [t["id"] for t in page["tasks"]] == made[:0:-1] and page["totalSize"] == 3 and page["pageSize"] == 2
    assert not any("artifacts" in t for t in page["tasks"])
    rest = wire.call("ListTasks", {"contextId": context, "pageSize": 2, "pageToken": page["nextPageToken"], "includeArtifacts": "true" if isinstance(wire, Rest) else True})
    assert [t["id"] for t in rest["tasks"]] == made[:1] and rest.get("nextPageToken", "") == "" and rest["tasks"][0]["artifacts"]
    assert wire.call("ListTasks", {"contextId": context, "status": "TASK_STATE_FAILED"})["totalSize" if not isinstance(wire, Grpc) else "pageSize"] in (0, 50)
    for wrong in ({"pageSize": 0}, {"pageSize": 101}, {"pageToken": "nonsense"}):
        refused("INVALID_PARAMS", wire.call, "ListTasks", wrong)


def test_3_1_5_cancels(wire):
    task = send(wire, "tck-cancel", {"returnImmediately": True})
    assert state(wire.call("CancelTask", {"id": task["id"]})) == "CANCELED"
    assert state(wire.call("GetTask", {"id": task["id"]})) == "CANCELED"
    refused("TASK_NOT_CANCELABLE", wire.call, "CancelTask", {"id": send(wire, "tck-complete-task")["id"]})
    refused("TASK_NOT_FOUND", wire.call, "CancelTask", {"id": "none"})


def test_3_1_2_streams(wire):
    events = list(wire.stream("SendStreamingMessage", message("tck-stream-001")))
    assert "task" in events[0] and state(events[-1]["statusUpdate"]) == "COMPLETED"
    (task,) = {e[kind].get("taskId", e[kind].get("id")) for e in events for kind in e}
    text = "".join(p["text"] for e in events if "artifactUpdate" in e for p in e["artifactUpdate"]["artifact"]["parts"])
    assert text == wire.call("GetTask", {"id": task})["artifacts"][0]["parts"][0]["text"] == "one two three"
    chunks = [e["artifactUpdate"] for e in wire.stream("SendStreamingMessage", message("tck-stream-artifact-chunked")) if "artifactUpdate" in e]
    assert [(c.get("append", False), c.get("lastChunk", False)) for c in chunks] == [(False, False), (True, False), (True, True)]
    asked = list(wire.stream("SendStreamingMessage", message("tck-input-required")))
    assert state(asked[-1]["statusUpdate"]) == "INPUT_REQUIRED", "it ends with the turn"


def test_3_1_6_subscribers_see_the_same(wire):
    task = send(wire, "test-resubscribe-message-id", {"returnImmediately": True})
    seen = [[], []]

    def follow(into):
        into.extend(wire.stream("SubscribeToTask", {"id": task["id"]}))

    threads = [threading.Thread(target=follow, args=(into,)) for into in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for events in seen:
        assert events[0]["task"]["id"] == task["id"] and state(events[-1]["statusUpdate"]) == "COMPLETED"
    assert seen[0][-2:] == seen[1][-2:]
    refused("UNSUPPORTED_OPERATION", wire.stream, "SubscribeToTask", {"id": task["id"]})
    refused("TASK_NOT_FOUND", wire.stream, "SubscribeToTask", {"id": "none"})
    parked = send(wire, "tck-input-required")
    waiting = wire.stream("SubscribeToTask", {"id": parked["id"]})
    assert state(next(waiting)["task"]) == "INPUT_REQUIRED", "a task that waits has subscribers too"
    waiting.close()


@pytest.mark.parametrize("binding", BINDINGS)
def test_3_6_versions(agents, binding):
    for version in ("99.0", "2.0", "x"):
        refused("VERSION_NOT_SUPPORTED", BINDINGS[binding](agents, "conformance", version).call, "GetTask", {"id": "x"})
    assert state(send(BINDINGS[binding](agents, "conformance", "1.1"), "tck-complete-task")) == "COMPLETED"


@pytest.mark.parametrize("binding", BINDINGS)
def test_3_3_4_what_is_not_there(agents, binding):
    plain = BINDINGS[binding](agents, "conformance-plain")
    refused("UNSUPPORTED_OPERATION", plain.stream, "SendStreamingMessage", message("x"))
    refused("UNSUPPORTED_OPERATION", plain.stream, "SubscribeToTask", {"id": "x"})
    refused("UNSUPPORTED_OPERATION", plain.call, "GetExtendedAgentCard", {})
    assert state(send(plain, "tck-complete-task")) == "COMPLETED"
    refused("EXTENSION_SUPPORT_REQUIRED", BINDINGS[binding](agents, "conformance-extension").call, "SendMessage", message("x"))


def test_4_4_the_card_has_what_is_required(agents):
    card = JsonRpc(agents, "conformance").http.get("/.well-known/agent-card.json").json()
    for name in ("name", "description", "supportedInterfaces", "version", "capabilities", "defaultInputModes", "defaultOutputModes", "skills"):
        assert card[name], name
    assert {i["protocolBinding"] for i in card["supportedInterfaces"]} == {"JSONRPC", "HTTP+JSON", "GRPC"}
    assert card["provider"] == {"organization": "Covey", "url": "https://example.com/covey"}
    for skill in card["skills"]:
        assert skill["id"] and skill["name"] and skill["description"] and skill["tags"]
