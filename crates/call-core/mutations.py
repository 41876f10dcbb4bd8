"""Plants one defect after the other in the caller's machine and has its tests find it. `make mutations`: three minutes.

Each defect is one the machine could really have: some stood in the code before it. The sources are copied into a temporary folder, so
nothing is changed here. Ends with 1 when a defect is not found, or when a line to change is not there any more.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCE = pathlib.Path("crates/call-core/src")

# What is wrong, where, what stands there, what stands there then.
DEFECTS = [
    ("an actor that moves is called at once where it is next", "caller/places.rs",
     "Some(over) => self.fence(now, actor, over, at),", "Some(_) => self.settle(now, actor, at),"),
    ("a fence is taken for back before it is", "caller/places.rs",
     "self.outputs.push_back(Output::Send(over, Frame::Fence(fence)));", "self.timers.set(now, Timer::Fence(fence));"),
    ("an actor that moves on meanwhile is called where it was to be first", "caller/places.rs",
     "                *to = at;\n                return;", "                let _ = (to, at);\n                return;"),
    ("an activation that is over is called again", "caller/places.rs", "waits && self.stale", "false && self.stale"),
    ("frames for a worker that cannot be dialled are lost", "caller/losses.rs",
     "None => self.outputs.push_back(Output::ToHead(lane)),", "None => self.outputs.push_back(Output::Close(lane)),"),
    ("a worker that cannot be dialled is waited for behind a head that was given up", "caller/losses.rs",
     "waiting.into_iter().for_each(|id| self.end(now, id, Err(error.clone())));", "drop((waiting, error));"),
    ("what waits for the head goes before older calls that come back", "caller/losses.rs",
     "self.relocate(now, id, avoided);\n            } else if self.may", "continue;\n            } else if self.may"),
    ("nobody is told which activation may have run a call", "caller/losses.rs", "call.tried = call.epoch;", "call.tried = 0;"),
    ("a call without a key is sent again although it may have run", "caller/losses.rs",
     "            Some(_) => self.take_retry(id),\n            None => false,", "            Some(_) => true,\n            None => false,"),
    ("a call with a key is not sent again", "caller/losses.rs",
     "                call.tried = call.epoch;\n                true", "                call.tried = call.epoch;\n                false"),
    ("a retry is refused by activations that did not run it", "caller/losses.rs", "(call.placed, call.tried) = (0, 0);", "call.placed = 0;"),
    ("what was refused goes to the same activation again", "caller/losses.rs",
     "            self.avoid(&actor, epoch, avoided);\n            self.locate(now, &actor);\n        }\n        if", "        }\n        if"),
    ("the head is not asked again once it is back", "caller/losses.rs", "        self.ask_all();\n", ""),
    ("calls wait for a head that was given up", "caller/losses.rs", "        self.give_up_places(now, &error);\n", ""),
    ("an end speaks of the last sending alone", "caller.rs", "error.executed = call.ran;", "let _ = error;"),
    ("what was answered in part is sent again", "caller.rs", "call.again = None;\n        matches", "matches"),
    ("a call that is cancelled stays in the queue", "caller.rs", "let queued = self.unqueue(id);\n        if !queued {", "let queued = false;\n        if !queued {"),
    ("a worker that does not answer is waited for beyond the call's time", "caller.rs",
     "Timer::DeadlineUnanswered(id) => self.cancel(now, id, ErrorKind::DeadlineExceeded, LATE),", "Timer::DeadlineUnanswered(_) => {}"),
]


def copied(folder):
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.split("\0"):
        if name.endswith((".rs", ".toml", ".lock", ".proto")) and (ROOT / name).exists():
            to = folder / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to)


def found(folder):
    """Whether the tests fail, and not because the defect does not compile."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "mutations"
    command = ["cargo", "test", "--release", "--quiet", "-p", "covey-call-core"]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "CARGO_TARGET_DIR": str(target)}, capture_output=True, text=True)
    if "could not compile" in done.stderr:
        sys.exit(done.stderr)
    return done.returncode != 0


def main():
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copied(folder)
        if found(folder):
            sys.exit("the tests fail without a defect")
        for what, file, before, after in DEFECTS:
            path = folder / SOURCE / file
            text = path.read_text()
            if text.count(before) != 1:
                sys.exit(f"{file} has not once what is to be changed: {before!r}")
            path.write_text(text.replace(before, after))
            seen = found(folder)
            path.write_text(text)
            missed += not seen
            print(f"{'found ' if seen else 'MISSED'}  {what}", flush=True)
    print(f"{len(DEFECTS) - missed} of {len(DEFECTS)} found")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
