#!/usr/bin/env python3
"""Reads the machine code that build.rs made of the kernels, prints a table, and fails where a kernel is not what it is
meant to be: one that is in the way of every token must not keep registers in local memory, and has to load 16 bytes at a
time and to multiply with the instructions for it.

    kernels/check_sass.py [FOLDER]     FOLDER: of the .cubin files; else that of cargo's last build in target/

CUOBJDUMP, or PATH, names cuobjdump, and nvdisasm is beside it or in PATH; PTXAS or PATH names ptxas, which must accept
the PTX, whose version build.rs lowers. kernels/cuda-setup.sh gets all three.
"""
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

# What must be in a kernel, by the start of an opcode and how often at least. The first row that matches the whole name
# counts. A row that matches no kernel of its module is a mistake, too.
HOT = [
    # name, module, wanted
    (r"decode_(project|gate_up|head)_\w+", "decode", {"LDG.E.128": 4, "IDP": 8}),
    (r"decode_attention_\w+", "decode", {"LDSM": 8, "HMMA": 8}),
    (r"prefill_gemm\w*", "prefill", {"HMMA": 8}),
    (r"prefill_attention\w*", "prefill", {"HMMA": 8}),
]
# Loads and stores of local memory: what did not fit the registers. No kernel of the list may have any, but these.
LOCAL = ("LDL", "STL")
LOCAL_MAX = {
    # A word outside the loops, for a third thread block a multiprocessor: the next kernel's, which starts early.
    **{(f"decode_gate_up_{format}", "sm_90"): 2 for format in ("q5_0", "q5_1", "q4_k", "q5_k", "q6_k")},
    # All 255 registers are taken, and no model that is tested has heads of 256.
    ("prefill_attention_256", "sm_75"): 45,
}
# Counted in the table.
COLUMNS = ("LDG.E.128", "LDG", "LDGSTS", "LDSM", "IDP", "IMMA", "HMMA", "HFMA2", "FFMA")

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
FUNCTION = re.compile(r"^\s+Function : (\w+)")
USAGE = re.compile(r"^ Function (\w+):\n\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", re.MULTILINE)


def tool(name):
    path = os.environ.get(name.upper()) or shutil.which(name)
    if not path:
        sys.exit(f"{name}: set {name.upper()} or PATH (kernels/cuda-setup.sh gets it)")
    return path


def dump(option, cubin):
    """What cuobjdump says of a file."""
    path = tool("cuobjdump")
    near = str(Path(path).resolve().parent)
    environment = dict(os.environ, PATH=near + os.pathsep + os.environ.get("PATH", ""))
    result = subprocess.run([path, option, cubin], env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{path} {option} {cubin}: {result.stderr.strip() or result.returncode}")
    return result.stdout


def opcodes(cubin):
    """How often each opcode is in each kernel."""
    kernels, counts = {}, None
    for line in dump("-sass", cubin).splitlines():
        if function := FUNCTION.match(line):
            counts = kernels.setdefault(function[1], Counter())
        elif counts is not None and (instruction := INSTRUCTION.match(line)):
            counts[instruction[1]] += 1
    return kernels


def total(counts, opcode):
    """Instructions of an opcode and all its variants: IDP.4A.U8.S8 is an IDP."""
    return sum(n for name, n in counts.items() if name == opcode or name.startswith(opcode + "."))


def complaints(name, arch, counts):
    """What is wrong with a kernel."""
    wanted = next((wanted for pattern, _, wanted in HOT if re.fullmatch(pattern, name)), None)
    if wanted is None:
        return []
    found = [f"{total(counts, opcode)} × {opcode}, at least {least} expected" for opcode, least in wanted.items()
             if total(counts, opcode) < least]
    local, allowed = sum(total(counts, opcode) for opcode in LOCAL), LOCAL_MAX.get((name, arch), 0)
    if local > allowed:
        found.append(f"{local} × {' or '.join(LOCAL)}, at most {allowed} allowed: registers are kept in local memory")
    return [f"{name} for {arch}: {complaint}" for complaint in found]


def latest():
    """Where cargo's last build with the feature `cuda` put its images."""
    root = Path(__file__).resolve().parent.parent
    target = Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    tables = [*target.glob("*/build/edgellm-*/out/cuda_images.rs"), *target.glob("*/*/build/edgellm-*/out/cuda_images.rs")]
    if not tables:
        sys.exit(f"{target}: nothing was built with --features cuda")
    return max(tables, key=lambda path: path.stat().st_mtime).parent


def images(folder, end):
    """The images in a folder; of a build's, those that its table has, not what an earlier build left there."""
    table = folder / "cuda_images.rs"
    files = sorted(folder.glob(f"*.{end}"))
    return [path for path in files if f"{path.name}\"" in table.read_text()] if table.exists() else files


def ptx_complaints(ptx):
    """What the assembler has against PTX, for the first device that it is for."""
    arch = ptx.name.split(".")[1].replace("compute_", "sm_")
    command = [tool("ptxas"), f"-arch={arch}", ptx, "-o", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if result.returncode == 0 else [f"{ptx.name}: {result.stderr.strip() or result.returncode}"]


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else latest()
    wrong, names = [], {}
    heads = ["kernel", "registers", "stack", "shared", "instructions", *LOCAL, *COLUMNS]
    for cubin in images(folder, "cubin") or sys.exit(f"{folder}: no .cubin"):
        module, arch = cubin.name.split(".")[:2]
        usage = {found[0]: found[1:] for found in USAGE.findall(dump("-res-usage", cubin))}
        rows = []
        for name, counts in sorted(opcodes(cubin).items()):
            names.setdefault(module, set()).add(name)
            counted = [total(counts, opcode) for opcode in (*LOCAL, *COLUMNS)]
            rows.append([name, *usage.get(name, ("?",) * 3), counts.total(), *counted])
            wrong += complaints(name, arch, counts)
        if not rows:
            wrong.append(f"{cubin.name}: no kernel found")
        print(f"\n{module} for {arch}: {cubin.stat().st_size} bytes")
        texts = [[str(cell) for cell in row] for row in [heads, *rows]]
        widths = [max(map(len, column)) for column in zip(*texts)]
        for row in texts:
            print("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]))
    for ptx in images(folder, "ptx"):
        wrong += ptx_complaints(ptx)
        print(f"\n{ptx.name}: {ptx.stat().st_size} bytes")
    for pattern, module, _ in HOT:
        if module in names and not any(re.fullmatch(pattern, name) for name in names[module]):
            wrong.append(f"{module}.cu has no kernel `{pattern}`, which check_sass.py looks for")
    if wrong:
        sys.exit("\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
