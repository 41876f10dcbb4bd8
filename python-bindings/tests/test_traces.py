"""Spans from driver to actor to model, at a collector that speaks OTLP."""

import concurrent.futures
import http.server
import subprocess
import sys
import textwrap
import threading

import grpc
import pytest
from conftest import ROOT, eventually
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SCRIPT = """
    import covey
    from covey import Context, agent

    @agent
    class Outer:
        async def ask(self, inner, ctx: Context):
            return await inner.think.remote() + await ctx.llm.complete("Repeat: sun", model="tiny", max_tokens=4)

    @agent
    class Inner:
        def think(self):
            return "x"
        def fail(self):
            raise ValueError("as asked")

    with covey.connect():
        inner = Inner.remote()
        Outer.remote().ask.remote(inner).result(60)
        try:
            inner.fail.remote().result(30)
        except ValueError:
            pass
"""


class Collector:
    """The trace service of an OpenTelemetry collector, as far as it listens."""

    def __init__(self):
        self.spans = []
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        export = grpc.unary_unary_rpc_method_handler(
            self.export, request_deserializer=ExportTraceServiceRequest.FromString, response_serializer=lambda _: b""
        )
        handlers = {"Export": export}
        name = "opentelemetry.proto.collector.trace.v1.TraceService"
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def export(self, request, _):
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                self.spans += [(service, span) for span in scope.spans]
        return b""


class HttpCollector:
    """The same by HTTP: protobuf at `/v1/traces`, and nothing elsewhere."""

    def __init__(self):
        self.spans, self.wrong = [], []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                good = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
                if good:
                    Collector.export(collector, ExportTraceServiceRequest.FromString(body), None)
                else:
                    collector.wrong.append((self.path, self.headers["content-type"]))
                self.send_response(200 if good else 404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def http_collector(nodes):
    made = HttpCollector()
    endpoint = f"http://127.0.0.1:{made.port}"
    nodes.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    nodes.head()
    nodes.worker("w")
    yield made
    made.server.shutdown()


def test_spans_go_by_http_where_the_environment_says_so(nodes, http_collector):
    run(nodes, SCRIPT)
    eventually(lambda: {"ask", "think", "chat tiny", "fail"} <= {s.name for _, s in http_collector.spans})
    assert {"covey-driver", "covey-worker"} <= {service for service, _ in http_collector.spans}
    assert not http_collector.wrong


def test_a_protocol_that_is_not_spoken_is_named(nodes):
    nodes.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"}
    out = nodes.cli("status")
    assert out.returncode == 64 and "carrier-pigeon" in out.stderr and "http/protobuf" in out.stderr


@pytest.fixture
def collector(nodes):
    """A collector, and a cluster with one worker that sends to it."""
    made = Collector()
    nodes.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{made.port}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    nodes.head()
    nodes.worker("w")
    yield made
    made.server.stop(0)


def run(nodes, script):
    env = {**nodes.env, "PYTHONPATH": str(ROOT / "python-bindings/python")}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr


def test_one_trace_from_driver_to_actor_to_actor_to_model(nodes, collector):
    run(nodes, SCRIPT)

    eventually(lambda: len(collector.spans) >= 7)
    spans = {s.span_id: (service, s) for service, s in collector.spans}

    def path(span):
        """The span and all above it, up to the driver's."""
        service, own = span
        return [(service, own.name), *(path(spans[own.parent_span_id]) if own.parent_span_id else [])]

    paths = [path(span) for span in spans.values()]
    ask = [("covey-worker", "ask"), ("covey-driver", "ask")]
    assert [("covey-worker", "chat tiny"), *ask] in paths
    assert [("covey-worker", "think"), ("covey-worker", "think"), *ask] in paths, "a call, and the turn it makes"
    model = next(s for _, s in spans.values() if s.name == "chat tiny")
    used = {a.key: a.value for a in model.attributes}
    assert used["gen_ai.request.model"].string_value == "tiny" and used["gen_ai.usage.output_tokens"].int_value > 0
    failed = [s for _, s in spans.values() if s.name == "fail"]
    assert len(failed) == 2 and all(s.status.code == 2 and "as asked" in s.status.message for s in failed)
    traces = {s.trace_id for _, s in spans.values() if s.name in ("ask", "think", "chat tiny")}
    assert len(traces) == 1


def test_the_callers_own_span_is_the_parent(nodes, collector):
    script = """

        import covey
        from opentelemetry import trace
        own = trace.SpanContext(0xabc, 0xdef, is_remote=False, trace_flags=trace.TraceFlags(1))
        with covey.connect(), trace.use_span(trace.NonRecordingSpan(own)):
            covey.remote_agent("counter").add.remote(1).result(30)
    """
    run(nodes, script)
    eventually(lambda: len([1 for _, s in collector.spans if s.name == "add"]) == 2)
    assert {s.trace_id for _, s in collector.spans if s.name == "add"} == {(0xABC).to_bytes(16, "big")}
    assert (0xDEF).to_bytes(8, "big") in {s.parent_span_id for _, s in collector.spans}


@pytest.mark.parametrize("binding", ["JSON-RPC", "HTTP+JSON", "gRPC"])
def test_a_task_belongs_to_the_trace_of_the_request_that_made_it(nodes, collector, binding):
    import httpx
    from a2a.types import Message, Part, Role, SendMessageRequest
    from a2a.types.a2a_pb2_grpc import A2AServiceStub

    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01", "authorization": f"Bearer {nodes.keys['admin_key']}", "a2a-version": "1.0"}
    message = {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "hi"}]}
    at = f"http://{nodes.keys['address']}/a2a/echo"
    if binding == "JSON-RPC":
        httpx.post(at, json={"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}}, headers=headers)
    elif binding == "HTTP+JSON":
        httpx.post(f"{at}/message:send", json={"message": message}, headers=headers)
    else:
        with grpc.insecure_channel(nodes.keys["address"]) as channel:
            sent = Message(message_id="m", role=Role.ROLE_USER, parts=[Part(text="hi")])
            A2AServiceStub(channel).SendMessage(SendMessageRequest(tenant="echo", message=sent), metadata=list(headers.items()))
    spans = lambda: [span for _, span in collector.spans if span.trace_id.hex() == trace]
    (span,) = eventually(spans)
    assert (span.name, span.parent_span_id.hex()) == ("run", parent)
