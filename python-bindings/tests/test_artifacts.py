"""Large files: in the artifact store instead of the log, out as links, and forgotten with their last task."""

import base64
import hashlib
import os
import subprocess
import urllib.parse
import uuid

import httpx
import pytest
from conftest import TARGET
from test_foreign import connected, elsewhere  # noqa: F401  a fixture
from test_turns import made

import covey
from covey import Context, File

LARGE = os.urandom(1 << 20) * 3 + b"end"
S3_SERVER = TARGET / "release/examples/s3_server"
DIGEST = hashlib.sha256(LARGE).hexdigest()


class Copier:
    """Copies files."""

    async def run(self, text: str, ctx: Context):
        file = ctx.message.files[0]
        yield File(file.read(), name="copy-" + (file.name or "x"), mime=file.mime)

    async def measure(self, text: str, ctx: Context) -> dict:
        (file,) = ctx.message.files
        pieces = [len(piece) for piece in file.chunks()]
        return {"size": file.size, "pieces": len(pieces), "sum": hashlib.sha256(file.read()).hexdigest()}

    async def parts(self, text: str, ctx: Context) -> str:
        ctx.artifact("video", File(LARGE, name="v.mp4"), name="video")
        return "made"

    async def say(self, text: str, ctx: Context) -> covey.Reply:
        return covey.Reply("here it is", File(LARGE, name="ä ü.bin"))

    async def names(self, text: str, ctx: Context) -> list:
        return [file.url or file.name for file in ctx.message.files]


@pytest.fixture
def web(cluster):
    headers = {"Authorization": f"Bearer {cluster.keys['admin_key']}", "A2A-Version": "1.0"}
    with httpx.Client(base_url=f"http://{cluster.keys['address']}", headers=headers, timeout=30) as client:
        yield client


def send(web, name, *parts, **metadata):
    message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": list(parts), "metadata": metadata}
    answer = web.post(f"/a2a/{name}", json={"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}})
    return answer.json()["result"]["task"]


def raw(name="big.bin", mime="video/mp4", body=LARGE):
    return {"raw": base64.b64encode(body).decode(), "filename": name, "mediaType": mime}


def stored(cluster):
    return {path.name for path in (cluster.home / "head/artifacts").rglob("*") if path.is_file()}


def test_a_large_file_goes_in_and_comes_out_as_a_link(cluster, web):
    name = made(Copier).register()
    task = send(web, name, {"text": "copy"}, raw())
    assert DIGEST in stored(cluster)
    asked = task["history"][0]["parts"][1]
    made_of = task["artifacts"][0]["parts"][0]
    assert "raw" not in made_of and (made_of["filename"], made_of["mediaType"]) == ("copy-big.bin", "video/mp4")
    for part in (asked, made_of):
        answer = httpx.get(part["url"])  # without a key
        assert answer.status_code == 200 and answer.content == LARGE
        assert answer.headers["content-type"] == "video/mp4" and "sandbox" in answer.headers["content-security-policy"]
        assert part["filename"] in urllib.parse.unquote(answer.headers["content-disposition"])
    # The log stays small.
    assert sum(len(str(event)) for event in covey.Task.from_id(task["id"]).events()) < 10_000
    # Every way to the task has links.
    again = web.get(f"/a2a/{name}/tasks/{task['id']}").json()
    assert httpx.get(again["artifacts"][0]["parts"][0]["url"]).content == LARGE


def test_a_link_opens_one_file_for_a_while(cluster, web):
    name = made(Copier).register()
    url = send(web, name, raw())["artifacts"][0]["parts"][0]["url"]
    part = httpx.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, LARGE[10:20], f"bytes 10-19/{len(LARGE)}")
    assert httpx.get(url, headers={"Range": "bytes=-3"}).content == b"end"
    assert httpx.get(url, headers={"Range": f"bytes={len(LARGE)}-"}).status_code == 416
    assert httpx.head(url).headers["content-length"] == str(len(LARGE))
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))
    for wrong in (
        url.replace(DIGEST, hashlib.sha256(b"other").hexdigest()),
        url.replace("copy", "copx"),
        url.replace(f"until={query['until']}", f"until={int(query['until']) + 9}"),
        url.split("?")[0],
    ):
        assert httpx.get(wrong).status_code == 403, wrong
    # Nor does an address of that form in a message make one.
    forged = send(web, name, {"url": f"covey:artifact/{DIGEST}"}, skill="names")
    assert forged["history"][0]["parts"][0]["url"] == "about:blank"


def test_files_of_every_size_between_drivers_and_agents(cluster, tmp_path):
    name = made(Copier).register()
    for size in (0, 1, 256 << 10, (256 << 10) + 1, (8 << 20) + 1, 50 << 20):
        path = tmp_path / f"{size}.bin"
        path.write_bytes(os.urandom(size))
        measured = covey.submit(name, "measure", "go", File(path=path)).result(60)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (measured["size"], measured["sum"]) == (size, digest)
        assert (digest in stored(cluster)) == (size > 256 << 10)
    (copy,) = covey.submit(name, "", "go", File(LARGE, name="x.bin")).result(60)
    assert copy.size == len(LARGE) and copy.data == LARGE and copy == File(LARGE, name="copy-x.bin")
    copy.save(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == LARGE


def test_artifacts_and_replies_have_links_too(cluster, web):
    name = made(Copier).register()
    task = send(web, name, {"text": "go"}, skill="parts")
    parts = [part for artifact in task["artifacts"] for part in artifact["parts"]]
    assert httpx.get(next(p["url"] for p in parts if "url" in p)).content == LARGE
    said = send(web, name, {"text": "go"}, skill="say")["status"]["message"]["parts"]
    assert httpx.get(said[1]["url"]).content == LARGE and said[1]["filename"] == "ä ü.bin"


def test_files_outlive_a_head_and_lie_where_they_are_wanted(nodes, tmp_path):
    nodes.head("--artifacts", str(tmp_path / "files"))
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)
    task = covey.submit(made(Copier).register(), "", "go", File(LARGE, name="x"))
    task.result(30)
    nodes.kill9("head")
    # This one looks for files that nobody names, and this is none.
    nodes.head("--artifacts", str(tmp_path / "files"))
    nodes.live(1)
    assert covey.Task.from_id(task.id).result(30)[0].data == LARGE
    assert [p.name for p in (tmp_path / "files").rglob("*") if p.is_file()] == [DIGEST]
    bad = nodes.cli("head", "--port", "0", "--artifacts", "gs://bucket")
    assert bad.returncode != 0 and "s3://bucket/prefix" in bad.stderr


def test_a_bucket_holds_them_as_well_and_gives_them_out_itself(nodes, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    server = subprocess.Popen([S3_SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip()
        nodes.env |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{address}"}
        nodes.head("--artifacts", "s3://files/covey")
        nodes.worker("w1")
        nodes.connect()
        nodes.live(1)
        (copy,) = covey.submit(made(Copier).register(), "", "go", File(LARGE, name="x")).result(30)
        assert copy.data == LARGE and any(path.name == DIGEST for path in files.rglob("*"))
        headers = {"Authorization": f"Bearer {nodes.keys['admin_key']}", "A2A-Version": "1.0"}
        with httpx.Client(base_url=f"http://{nodes.keys['address']}", headers=headers) as web:
            url = send(web, made(Copier).register(), raw())["artifacts"][0]["parts"][0]["url"]
        answer = httpx.get(url)
        assert answer.status_code == 307 and address in answer.headers["location"]
        assert httpx.get(url, follow_redirects=True).content == LARGE
    finally:
        server.kill()
        server.wait()


def test_wrong_uploads_leave_nothing(cluster):
    from covey._current import bridge_call

    client, name = covey.current().client, hashlib.sha256(b"announced").hexdigest()
    with pytest.raises(covey.CoveyError, match="digest"):
        bridge_call(client.put_artifact, "", name, b"another", True)
    with pytest.raises(covey.CoveyError, match="SHA-256"):
        bridge_call(client.put_artifact, "", "../../etc/passwd", b"x", True)
    with pytest.raises(covey.CoveyError, match="upload"):
        bridge_call(client.put_artifact, "upload-1", name, b"x", True)
    with pytest.raises(covey.CoveyError, match="artifact"):
        bridge_call(client.get_artifact, name, 0, 10)
    assert name not in stored(cluster)


def test_large_files_go_to_agents_elsewhere_and_back(cluster, elsewhere):  # noqa: F811
    with elsewhere.connect():
        name = made(Copier).register()
    with cluster.connect():
        far = connected(f"http://{elsewhere.keys['address']}/a2a/{name}", token=elsewhere.keys["admin_key"])
        # It comes back as the other cluster's link.
        (copy,) = covey.submit(far, "", "go", File(LARGE, name="x.bin")).result(60)
        assert httpx.get(copy.url).content == LARGE


def test_what_an_agent_does_not_take_is_refused(cluster, web):
    name = made(Copier, a2a={"input_modes": ["text/plain", "image/*"]}).register()
    sound, picture = raw("x", "audio/wav", b"x"), raw("x", "image/png", b"x")
    refused = web.post(f"/a2a/{name}/message:send", json={"message": {"messageId": "m", "role": "ROLE_USER", "parts": [sound]}})
    assert refused.status_code == 400 and refused.json()["error"]["details"][0]["reason"] == "CONTENT_TYPE_NOT_SUPPORTED"
    assert send(web, name, {"text": "x"}, picture)["status"]["state"] == "TASK_STATE_COMPLETED"
    lax = made(Copier, a2a={"input_modes": ["text/plain"], "any_input": True}).register()
    assert send(web, lax, {"text": "x"}, sound)["status"]["state"] == "TASK_STATE_COMPLETED"


@pytest.mark.parametrize("size", [5 << 20, 9 << 20])
def test_a_changed_byte_is_not_given_as_the_file(cluster, web, size, tmp_path):
    """The head compares what it reads whole, a driver what it gets in pieces."""
    body = os.urandom(size)
    task = send(web, made(Copier).register(), {"text": "copy"}, raw(body=body))
    digest = hashlib.sha256(body).hexdigest()
    part = task["artifacts"][0]["parts"][0]
    at = next((cluster.home / "head/artifacts").rglob(digest))
    at.write_bytes(body[:1000] + bytes([body[1000] ^ 1]) + body[1001:])
    file = File(b"", name="b")
    file._data, file._stored = None, (digest, size)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(part["url"])
    with pytest.raises(covey.errors.InternalError, match="is damaged"):
        file.read()
    saved = tmp_path / "saved"
    saved.write_text("before")
    with pytest.raises(covey.errors.InternalError, match="is damaged"):
        file.save(saved)
    assert saved.read_text() == "before" and list(tmp_path.iterdir()) == [saved]
    at.write_bytes(body)
    file.save(saved)
    assert saved.read_bytes() == body and list(tmp_path.iterdir()) == [saved]
    assert httpx.get(part["url"]).content == body and file.read() == body
