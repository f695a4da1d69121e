"""Makes other versions of a model with llama.cpp's own quantizer, for the comparisons.

    pip install llama-cpp-python
    python benches/requantize.py MODEL.gguf OUT_DIR [Q4_0,Q8_0,Q4_K_M] [--threads N]

Writes OUT_DIR/STEM-FORMAT.gguf for every format, a name of llama.cpp's LLAMA_FTYPE_MOSTLY_*, with the quantizer's
defaults (no importance matrix; the head and some layers in the larger formats that llama.cpp picks) except that the
source may be quantized itself. Such a file is for measuring speed and memory: its quality is the source's or worse. A
file that is there already is kept. Prints the sha256 of every file, the source too, and the version of the package.
"""

import argparse
import hashlib
from pathlib import Path

import llama_cpp as c

_quiet = c.llama_log_callback(lambda level, text, user: None)


def sha256(path):
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quantize(source, target, name, threads):
    """Writes `target`; under another name until it is whole."""
    params = c.llama_model_quantize_default_params()
    params.ftype = getattr(c, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.allow_requantize = True
    params.nthread = threads
    part = target.with_suffix(".part")
    status = c.llama_model_quantize(str(source).encode(), str(part).encode(), params)
    if status:
        part.unlink(missing_ok=True)
        raise SystemExit(f"{source}: llama_model_quantize to {name} failed with status {status}")
    part.rename(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("formats", nargs="?", default="Q4_0,Q8_0,Q4_K_M", type=lambda text: text.split(","))
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    arguments = parser.parse_args()
    for name in arguments.formats:
        if not hasattr(c, f"LLAMA_FTYPE_MOSTLY_{name}"):
            parser.error(f"llama.cpp has no format {name}")
    c.llama_log_set(_quiet, None)
    c.llama_backend_init()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(f"llama-cpp-python {c.__version__}, from {arguments.model.name}, sha256 {sha256(arguments.model)}")
    for name in arguments.formats:
        target = arguments.folder / f"{arguments.model.stem}-{name}.gguf"
        if not target.exists():
            quantize(arguments.model, target, name, arguments.threads)
        print(f"{target.name}  {target.stat().st_size} bytes  sha256 {sha256(target)}", flush=True)


if __name__ == "__main__":
    main()
