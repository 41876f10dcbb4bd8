"""The command line, as a person types it: answers, errors with hints, exit codes."""

import json
import shutil
import stat
import subprocess
import time

import pytest
from conftest import BIN, ROOT, eventually

import covey


def test_help_has_examples(cluster):
    for command in ([], ["up"], ["worker"], ["submit"], ["chat"]):
        out = cluster.cli(*command, "--help")
        assert out.returncode == 0 and "Example" in out.stdout, command


def test_submit_chat_status_agents_models(cluster):
    assert cluster.cli("submit", "echo", "hello there").stdout == "hello there\n"
    assert cluster.cli("chat", input="Repeat: sun moon\n").stdout == "sun moon\n"
    status = json.loads(cluster.cli("status", "--json").stdout)
    assert status["nodes"][0]["state"] == "live" and status["tasks"]["completed"] >= 2
    assert "node w1 · live" in cluster.cli("status").stdout
    assert "echo (native)" in cluster.cli("agents").stdout
    assert "tiny · qwen3" in cluster.cli("model", "ls", cwd=ROOT).stdout
    assert cluster.cli("token").stdout.strip() == f"{cluster.keys['join_secret']}@{cluster.keys['address']}"


def test_credentials_are_private(cluster):
    mode = (cluster.home / "credentials.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_errors_name_the_way_out(cluster, tmp_path):
    def fails(code, needle, *args):
        out = cluster.cli(*args)
        assert out.returncode == code and needle in out.stderr, (args, out.returncode, out.stderr)

    fails(66, "known: ", "submit", "nobody", "hi")
    fails(66, "covey agents", "chat", "nobody")
    for command in ("logs", "stack"):
        fails(66, "no actor `nobody`\n  hint: `covey actors` lists all of them", command, "nobody")
    fails(64, "unrecognized subcommand 'nonesuch'", "nonesuch")
    fails(64, "unexpected argument '--nonesuch'", "status", "--nonesuch")
    fails(64, "<ACTOR>", "logs")
    fails(64, "Usage: covey")
    for asked in ("--help", "--version"):
        assert cluster.cli(asked).returncode == 0 and cluster.cli(asked).stdout
    port = cluster.keys["address"].rsplit(":", 1)[1]
    fails(73, "takes another", "head", "--port", port)
    fails(77, "covey token", "worker", "--join", f"cvj_wrong@{cluster.keys['address']}")
    fails(64, "covey token", "worker", "--join", "nonsense")
    fails(64, "no models folder", "worker", "--join", f"cvj_x@{cluster.keys['address']}", "--models", str(tmp_path / "none"))
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("nothing")
    fails(64, "must be PEM", "head", "--port", "0", "--data", str(tmp_path / "d"), "--tls-cert", str(no_pem), "--tls-key", str(no_pem))
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "bad.toml").write_text('name = "x"\nkind = llm\n')
    fails(64, "bad.toml", "head", "--port", "0", "--agents", str(agents), "--data", str(tmp_path / "d2"))
    broken = tmp_path / "broken"
    shutil.copytree(ROOT / "models/tiny", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    fails(64, "damaged or cut short", "model", "add", str(broken))
    assert cluster.cli("status").returncode == 0, "and the cluster still stands"


def test_names_are_listened_on_and_wrong_addresses_are_told(nodes, tmp_path):
    def fails(code, needle, *args):
        out = nodes.cli(*args)
        assert out.returncode == code and needle in out.stderr, (args, out.returncode, out.stderr)

    nodes.head("--host", "localhost")
    assert nodes.keys["address"].rsplit(":", 1)[0] in ("127.0.0.1", "[::1]")
    nodes.worker("w1", "--listen", "localhost:0")
    nodes.connect()
    nodes.live(1)
    assert nodes.cli("submit", "echo", "hi").stdout == "hi\n"
    data, join = str(tmp_path / "other"), f"cvj_x@{nodes.keys['address']}"
    fails(64, "no address is known", "head", "--port", "0", "--data", data, "--host", "nonesuch.invalid")
    fails(64, "not a whole address", "head", "--port", "0", "--data", data, "--host", "127.0.0")
    fails(64, "the port is an option of its own", "head", "--port", "0", "--data", data, "--host", "127.0.0.1:7420")
    fails(64, "no address of this machine", "head", "--port", "0", "--data", data, "--host", "192.0.2.1")
    for wrong, why in (("localhost", "no port"), ("localhost:many", "not a port"), ("nonesuch.invalid:0", "no address is known")):
        fails(64, why, "worker", "--join", join, "--listen", wrong)


def test_a_token_is_not_printed_for_the_head_of_another_address(cluster):
    """Workers would join the cluster of COVEY_HOME, and drivers of the same shell another one."""
    other = {**cluster.env, "COVEY_ADDRESS": "127.0.0.1:1", "COVEY_TOKEN": "cva_x"}
    for asked in ([], ["--admin"], ["--address"]):
        out = subprocess.run([BIN, "token", *asked], env=other, capture_output=True, text=True, timeout=60)
        assert out.returncode == 65 and "COVEY_ADDRESS names the head at `127.0.0.1:1`" in out.stderr and not out.stdout, out
    same = {**other, "COVEY_ADDRESS": cluster.address.replace("127.0.0.1", "localhost")}
    out = subprocess.run([BIN, "token"], env=same, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0 and cluster.keys["join_secret"] in out.stdout, out


def test_half_of_address_and_token_is_told(nodes, tmp_path, monkeypatch):
    empty = {name: value for name, value in nodes.env.items() if not name.startswith("COVEY_")} | {"COVEY_HOME": str(tmp_path / "empty")}
    for given, value, lacks in (("COVEY_ADDRESS", "127.0.0.1:7420", "COVEY_TOKEN"), ("COVEY_TOKEN", "cva_x", "COVEY_ADDRESS")):
        out = subprocess.run([BIN, "status"], env={**empty, given: value}, capture_output=True, text=True, timeout=60)
        assert out.returncode == 77 and f"{given} is set, {lacks} is not" in out.stderr, out
    monkeypatch.setenv("COVEY_HOME", str(tmp_path / "empty"))
    for name in ("COVEY_ADDRESS", "COVEY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COVEY_ADDRESS", "127.0.0.1:7420")
    with pytest.raises(covey.errors.Unauthenticated, match="no token.*COVEY_TOKEN"):
        covey.connect()
    monkeypatch.delenv("COVEY_ADDRESS")
    monkeypatch.setenv("COVEY_TOKEN", "cva_x")
    with pytest.raises(covey.errors.Unauthenticated, match="no address.*COVEY_ADDRESS"):
        covey.connect()


def test_a_damaged_model_is_told_to_the_caller_and_harms_nobody(nodes, tmp_path):
    broken = tmp_path / "models" / "broken"
    broken.parent.mkdir()
    shutil.copytree(ROOT / "models/tiny", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    nodes.head()
    nodes.worker("w1", "--models", str(broken.parent))
    nodes.connect()
    nodes.live(1)
    import covey

    try:
        covey.llm.complete("x", model="broken")
        raise AssertionError("it must fail")
    except covey.CoveyError as error:
        assert "damaged or cut short" in str(error)
    assert covey.llm.complete("Repeat: blue", model="tiny") == "blue"


def test_agents_from_files(nodes, tmp_path):
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "helper.toml").write_text('name = "helper"\nkind = "llm"\nmodel = "tiny"\nsystem = "amber is 42, river is 7"\n')
    (agents / "shout.toml").write_text(
        'name = "shout"\nkind = "python"\nfile = "shout.py"\nclass = "Shout"\n[[skills]]\nid = "run"\nstreaming = true\n'
    )
    (agents / "shout.py").write_text("class Shout:\n    def run(self, text: str):\n        yield text.upper()\n")
    nodes.head("--agents", str(agents))
    nodes.worker("w1")
    assert nodes.cli("submit", "helper", "What is river?").stdout == "7\n"
    assert nodes.cli("submit", "shout", "hello").stdout == "HELLO\n"


def test_listings_have_no_cap_and_top_shows_all(nodes):
    @covey.agent
    class Small:
        def run(self):
            return 1

    nodes.head()
    nodes.worker("w1")
    with nodes.connect():
        nodes.live(1)
        for _ in range(1_200):
            covey.remote_agent("counter")
        one = Small.options(name="one", memory="1GiB").remote()
        one.run.remote().result(30)
        wants = Small.options(cpus=1000).remote()
        status = covey.status()
        assert len(status["actors"]) == 1_000 and sum(status["actor_counts"].values()) == 1_202
        listed = list(covey.actors())
        assert len({a["id"] for a in listed}) == 1_202 and [a["id"] for a in listed] == sorted(a["id"] for a in listed)
        assert len(list(covey.actors(agent="Small"))) == 2
        lines = nodes.cli("actors", "--node", "w1", "--json").stdout.splitlines()
        assert len(lines) == 1_201 and json.loads(lines[0])["agent"] == "counter"
        pending = nodes.cli("actors", "--state", "pending").stdout
        assert "needs cpus=1000" in pending and pending.count("\n") == 1
        assert "more; `covey actors` lists all" in nodes.cli("status").stdout
        top = nodes.cli("top", "--once").stdout
        assert "w1" in top and "1.0 GiB" in top and "1201" in top, top
        assert wants._actor in top or "needs cpus=1000" in nodes.cli("actors").stdout


def test_logs_stacks_and_metrics_show_what_happens(cluster):
    import httpx

    @covey.agent(name="talker")
    class Talker:
        def say(self, what):
            print("said", what)

        def hang_in_there(self, seconds):
            time.sleep(seconds)

    one = Talker.options(name="the-talker").remote()
    one.say.remote("hello log").result(20)
    out = eventually(lambda: (r := cluster.cli("logs", "the-talker")) and "said hello log" in r.stdout and r)
    assert out.returncode == 0
    following = subprocess.Popen([BIN, "logs", "-f", "the-talker"], env=cluster.env, stdout=subprocess.PIPE, text=True)
    assert "said hello log" in following.stdout.readline()
    one.say.remote("more").result(20)
    assert "said more" in following.stdout.readline()
    following.terminate()
    following.wait(10)
    one.hang_in_there.remote(20)
    assert eventually(lambda: "hang_in_there" in cluster.cli("stack", "the-talker").stdout)
    # It is asked for each time anew, and is nothing that the actor printed.
    stack = cluster.cli("stack", "the-talker").stdout
    assert stack.count("hang_in_there") == 1 and stack.count("Current thread") == 1, stack
    assert "hang_in_there" not in cluster.cli("logs", "the-talker").stdout
    assert cluster.cli("logs", "nobody-here").returncode == 66
    page = httpx.get(f"http://{cluster.keys['address']}/metrics", headers={"authorization": f"Bearer {cluster.keys['admin_key']}"})
    assert page.status_code == 200
    lines = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert lines['covey_nodes{state="live"}'] == "1" and float(lines['covey_actors{state="live"}']) >= 1
    assert httpx.get(f"http://{cluster.keys['address']}/metrics").status_code == 401


class Sleeps:
    async def sleep(self):
        import asyncio

        await asyncio.sleep(3600)

    async def asks(self, ctx):
        return await ctx.ask("which one?")


def test_tasks_are_listed_shown_and_cancelled(cluster):
    done = cluster.cli("submit", "echo", "a word to find", "--detach").stdout.strip()
    eventually(lambda: "completed" in cluster.cli("task", "show", done).stdout)
    assert any(line.startswith(f"{done} · echo") and line.endswith("a word to find") for line in cluster.cli("task", "ls").stdout.splitlines())
    shown = cluster.cli("task", "show", done).stdout
    assert "a word to find" in shown.splitlines()[-1] and "attempt 1" in shown
    assert done in [record["id"] for record in json.loads(cluster.cli("task", "ls", "--state", "completed", "--json").stdout)]
    assert [json.loads(line) for line in cluster.cli("task", "show", done, "--json").stdout.splitlines()][-1]["event"]["type"] == "finished"

    sleeps = covey.agent(Sleeps, name="cli-sleeps")
    task = covey.submit(sleeps, "sleep")
    eventually(lambda: task.state() == "working")
    assert cluster.cli("task", "ls", "--agent", "cli-sleeps", "--state", "working").stdout.startswith(f"{task.id} · cli-sleeps.sleep · working")
    assert "canceled" in cluster.cli("task", "cancel", task.id, "--reason", "not needed").stdout
    assert "not needed" in cluster.cli("task", "show", task.id).stdout
    asks = covey.submit(sleeps, "asks")
    eventually(lambda: "asks: which one?" in cluster.cli("task", "show", asks.id).stdout)
    asks.cancel()
    for wrong, code, text in (("show", 66, "covey task ls"), ("cancel", 66, "covey task ls")):
        out = cluster.cli("task", wrong, "01ARZ3NDEKTSV4RRFFQ69G5FAV")
        assert out.returncode == code and text in out.stderr
    assert cluster.cli("task", "ls", "--state", "sleeping").returncode == 64


def test_functions_are_listed_by_their_names(cluster, tmp_path):
    @covey.task
    def counts_sheep(path):
        while not path.exists():
            time.sleep(0.01)
        return 1

    call, other = counts_sheep.remote(tmp_path / "go"), counts_sheep.options(env_vars={"SHEEP": "1"}).remote(tmp_path / "go")
    try:
        of_it = lambda: [a for a in covey.actors(state="live") if a.get("function") == "counts_sheep"]  # noqa: E731
        # The one with an environment of its own is an agent of its own.
        eventually(lambda: len({a["agent"] for a in of_it()}) == 2)
        shown = cluster.cli("actors", "--state", "live").stdout
        assert shown.count("function counts_sheep · live") == len(of_it()), shown
        one = next(a for a in of_it() if a["agent"] == "covey.function")
        assert f"actor {one['id']} · function counts_sheep" in cluster.cli("status").stdout
    finally:
        (tmp_path / "go").touch()
    assert covey.get([call, other], timeout=60) == [1, 1]


class Chooses:
    async def choose(self, ctx):
        return f"took {await ctx.ask('which one?', options=['red', 'blue'])}"

    async def count(self, ctx):
        return (await ctx.ask("how many?", schema={"type": "integer"})).data

    def parts(self):
        yield "two of them: "
        yield {"n": 2}


def test_a_task_is_shown_with_its_data_what_it_takes_and_what_it_refused(cluster):
    chooses = covey.agent(Chooses, name="cli-chooses")
    parts = covey.submit(chooses, "parts")
    parts.result(30)
    assert cluster.cli("task", "show", parts.id).stdout.splitlines()[-2:] == ["two of them: ", '{"n":2}']
    task = covey.submit(chooses, "choose")
    shown = eventually(lambda: (out := cluster.cli("task", "show", task.id).stdout) and "asks: which one?" in out and out)
    assert "\n  red\n  blue\n" in shown
    wrong = cluster.cli("answer", task.id, "green")
    assert wrong.returncode == 64 and "refused: 'green' is none of red, blue" in wrong.stderr and "one of: red, blue" in wrong.stderr
    assert task.question.refused == "'green' is none of red, blue"
    shown = cluster.cli("task", "show", task.id).stdout
    assert "asks: which one?\n  red\n  blue\n  the answer before was refused: 'green' is none of red, blue\n" in shown
    assert cluster.cli("answer", task.id, "blue").stdout == "took blue\n"
    task = covey.submit(chooses, "count")
    eventually(lambda: 'schema: {"type":"integer"}' in cluster.cli("task", "show", task.id).stdout)
    wrong = cluster.cli("answer", task.id, "many")
    assert wrong.returncode == 64 and "refused" in wrong.stderr and '{"type":"integer"}' in wrong.stderr
    assert cluster.cli("answer", task.id, "7.0").stdout == "7\n"


def test_a_task_that_waits_says_why(cluster):
    many = covey.agent(Sleeps, name="cli-large", labels={"zone": "nowhere"})
    task = covey.submit(many, "sleep")
    eventually(lambda: "zone" in cluster.cli("task", "show", task.id).stdout)
    task.cancel()


def test_actors_are_shown_with_their_nodes(cluster):
    sleeps = covey.agent(Sleeps, name="cli-placed").options(name="placed").remote()
    call = sleeps.sleep.remote()
    eventually(lambda: "live" in cluster.cli("actors", "--agent", "cli-placed").stdout)
    for command in ("status",), ("actors", "--agent", "cli-placed"):
        (line,) = [line for line in cluster.cli(*command).stdout.splitlines() if "(placed)" in line]
        assert "cli-placed · live · node w1" in line, line
    call.cancel()
    sleeps.stop()
    # Where it was is told of one that is over, too.
    over = eventually(lambda: [a for a in covey.actors(agent="cli-placed") if a["state"] == "dead"])
    names = {node["id"]: node["name"] for node in covey.status()["nodes"]}
    assert names[over[0]["node"]] == "w1"
    assert "cli-placed · dead · node w1" in cluster.cli("actors", "--agent", "cli-placed").stdout
    assert cluster.cli("actors", "--agent", "cli-placed", "--node", "w1").stdout == "", "it is on no node any more"


def test_submit_says_why_a_task_does_not_begin(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    covey.agent(name="cli-elsewhere", labels={"zone": "nowhere"}, schedule_timeout="4s")(type("Elsewhere", (), {"run": lambda self, text: text})).register()
    ran = nodes.cli("submit", "cli-elsewhere", "x")
    assert ran.returncode and ran.stderr.count("(waits: needs label zone=nowhere") == 1, ran


def test_the_interpreter_beside_the_program_is_found(tmp_path):
    """Whoever calls a program of an environment by its path means that environment."""
    home = tmp_path / "home"
    home.mkdir()
    env = {"COVEY_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    up = subprocess.Popen([BIN, "up", "--port", "0", "--cpus", "1"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        eventually((home / "credentials.json").exists)
        told = eventually(lambda: json.loads(subprocess.run([BIN, "status", "--json"], env=env, capture_output=True, text=True).stdout or "{}").get("nodes"))
        assert told[0].get("no_python", "") == "", told
    finally:
        up.terminate()
        said = up.communicate(timeout=20)[1]
    assert "does not turn" not in said, said
