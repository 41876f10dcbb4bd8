"""mypy and pyright over a program with agents, handles, streams and tasks: they know its types, and find what is wrong."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from conftest import BIN, ROOT

HERE = pathlib.Path(__file__).parent / "typed"
PACKAGE = ROOT / "python-bindings/python"


def mypy(file, cache, folder=HERE):
    """Findings of a file: line, severity, text."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-pretty", "--cache-dir", str(cache), file]
    env = {"MYPYPATH": str(PACKAGE), "PATH": ""}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    lines = (re.match(rf"{file}:(\d+): (error|note): (.*)", line) for line in done.stdout.splitlines())
    return [(int(found[1]), found[2], found[3]) for found in lines if found]


def pyright(file, cache, folder=HERE):
    shutil.copytree(folder, cache)  # it wants its configuration beside the program
    config = {"include": [file], "extraPaths": [str(PACKAGE)], "typeCheckingMode": "strict"}
    (cache / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson"]
    done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=300)
    if done.returncode not in (0, 1):
        pytest.skip(f"pyright does not run here: {done.stderr[-500:]}")
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    severity = {"information": "note"}
    found = [f for f in report["generalDiagnostics"] if f["file"].endswith(file)]
    return [(f["range"]["start"]["line"] + 1, severity.get(f["severity"], f["severity"]), f["message"]) for f in found]


@pytest.fixture(params=[mypy, pyright], ids=["mypy", "pyright"])
def check(request, tmp_path):
    return lambda file, folder=HERE: request.param(file, tmp_path / "cache", folder)


def test_a_right_program_is_right(check):
    assert check("program.py") == []


def test_the_example_of_the_readme_is_right(check, tmp_path):
    (example,) = re.findall(r"^```python\n(import covey\n.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    (tmp_path / "readme").mkdir()
    (tmp_path / "readme" / "example.py").write_text(example)
    assert check("example.py", tmp_path / "readme") == []


def test_no_type_is_lost(check):
    lines = (HERE / "revealed.py").read_text().splitlines()
    wanted = {n: line.split("# ")[1] for n, line in enumerate(lines, 1) if "reveal_type(" in line}
    found = {n: text for n, severity, text in check("revealed.py") if severity == "note" and ("Revealed" in text or "Type of" in text)}
    # "Revealed type is "a.b.C[d.E]"", and "Type of "x" is "C[E]"".
    named = {n: re.sub(r"\b[a-z_]+\.", "", text.rsplit(" is ", 1)[1].strip('"')).replace("builtins.", "") for n, text in found.items()}
    assert named == wanted
    assert not any("Any" in text or "Unknown" in text for text in named.values())


def test_what_is_wrong_is_found(check):
    lines = (HERE / "wrong.py").read_text().splitlines()
    wanted = {n for n, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert {n for n, severity, _ in check("wrong.py") if severity == "error"} == wanted


def test_a_bare_class_is_an_agent_to_pyright(tmp_path):
    lines = (HERE / "bare.py").read_text().splitlines()
    wanted = {n: line.split("# ")[1] for n, line in enumerate(lines, 1) if "  # " in line}
    found = {n: "wrong" if severity == "error" else text.rsplit(" is ", 1)[1].strip('"') for n, severity, text in pyright("bare.py", tmp_path / "cache")}
    assert found == wanted


def test_the_program_runs():
    env = {"PYTHONPATH": str(PACKAGE), "COVEY_BIN": BIN, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, HERE / "program.py"], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines() == [
        "[8, 10] to be completed",
        "done [2, 'short'] [(3, 'short')]",
        "7 ['to', 'be'] tobe 2",
        "pool long Reader 2",
        "['REF A', 'AND A', 'REF A'] 3 9.0 [0, 1]",
        "one two three [1, 2] ['a', 'b']",
        "[(1, 1.0), (2, 4.0)] [1]",
        "1 {3: 9.0}",
        "True True method",
        "same long True ['a', 'b']",
        "6 A LONG ['to', 'be'] [b'a', b'b'] [0.0, 1.0, 4.0] HEY [0, 1, 2] 9.0 True",
    ]
