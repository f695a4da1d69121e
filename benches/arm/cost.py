"""What our ARM kernels cost beside llama.cpp's, without a board: writes RESULTS.md. README.md says what it means.

    python benches/arm/cost.py LLAMA_CPP_SOURCE [--qemu qemu-aarch64] [--llvm-mca llvm-mca] [--out RESULTS.md]
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = "aarch64-unknown-linux-gnu"
GNU = "aarch64-linux-gnu"
FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "TQ2_0", "I2_S")
OURS_ONLY = ("I2_S",)  # What llama.cpp does not read.
SIDES = ("ours", "llama.cpp")
ROWS = 16  # Of weights: one tile of ours.
# Activation rows and columns. Of the last only the instructions are counted, as llvm-mca takes long over it.
DECODE, PREFILL, CHUNK = (1, 1024), (16, 512), (64, 512)
EXTENSIONS = "+v8.2a,+dotprod,+fullfp16,+i8mm,+bf16"  # What the assembler of llvm-mca may read; the model is the CPU's.


@dataclass(frozen=True)
class Core:
    """A core, and what stands for it in each tool."""

    name: str
    gcc: str
    qemu: str
    mca: str
    model: str


A53 = Core("Cortex-A53", "cortex-a53", "cortex-a53", "cortex-a53", "Cortex-A53, in order")
A72 = Core("Cortex-A72", "cortex-a72", "cortex-a72", "cortex-a72", "Cortex-A57: LLVM has none of its own for the A72")
A76 = Core("Cortex-A76", "cortex-a76", "cortex-a76", "neoverse-n1", "Neoverse N1, the A76 for servers")
I8MM = Core("a core with i8mm", "cortex-a76+i8mm", "max", "neoverse-n2", "Neoverse N2, the A710 for servers")
CORES = (A53, A72, A76, I8MM)


@dataclass(frozen=True)
class Board:
    """A board's CPU and memory. GHz and peak are the vendor's; what was reached is what others report."""

    name: str
    cpu: str
    core: Core
    cores: int
    ghz: float
    peak: float  # GB/s of the memory.
    reached: str


BOARDS = (
    Board("Raspberry Pi 4", "Cortex-A72", A72, 4, 1.8, 12.8,
          "5.6 GB/s in STREAM's scale on one thread (sci-pi.org.uk/bench/stream.html)"),
    Board("Raspberry Pi 5", "Cortex-A76", A76, 4, 2.4, 17.1,
          "9.4 GB/s read by one thread (tinymembench, github.com/raspberrypi/firmware/issues/1876); 11.4 GB/s in decode"
          " on four (hellomatik.com/research/hitting-the-memory-wall-30b-moe-raspberry-pi)"),
    Board("Jetson Orin Nano 8 GB", "Cortex-A78AE", A76, 6, 1.5, 68.3,
          "6.7 GB/s copied by one thread, so twice that moved (tinymembench,"
          " github.com/ThomasKaiser/sbc-bench/issues/65); all cores: no figure found"),
    Board("Jetson AGX Orin 64 GB", "Cortex-A78AE", A76, 12, 2.2, 204.8, "CPU alone: no figure found"),
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """One product of 16 weight rows with some activation rows."""

    kernel: str
    instructions: int
    cycles: int | None
    weight_bytes: int
    products: int


def run(*command, **options):
    """The output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def build_ours():
    """The program of benches/kernels.rs for any aarch64: it takes the best kernel table of the CPU it runs on."""
    variable = TARGET.upper().replace("-", "_")
    environment = os.environ | {f"CARGO_TARGET_{variable}_LINKER": f"{GNU}-gcc", f"CC_{TARGET}": f"{GNU}-gcc"}
    messages = run("cargo", "build", "--release", "--bench", "kernels", "--target", TARGET, "--message-format=json",
                   cwd=HERE.parent.parent, env=environment)  # fmt: skip
    programs = [json.loads(line).get("executable") for line in messages.splitlines()]
    return next(program for program in programs if program)


def build_llama_cpp(source, core, folder):
    """llama_cpp.c with llama.cpp's kernels for one core. Of its two files only what the kernels need is linked."""
    ggml = Path(source) / "ggml"
    flags = ["-O3", "-DNDEBUG", f"-mcpu={core.gcc}", "-ffunction-sections", "-w"]
    flags += [f"-I{ggml / part}" for part in ("include", "src", "src/ggml-cpu")]
    objects = []
    arm = ggml / "src/ggml-cpu/arch/arm"
    for compiler, file in (("gcc", arm / "quants.c"), ("g++", arm / "repack.cpp"), ("gcc", HERE / "llama_cpp.c")):
        objects.append(folder / f"{core.gcc}-{file.name}.o")
        run(f"{GNU}-{compiler}", *flags, "-c", file, "-o", objects[-1])
    program = folder / f"llama-{core.gcc}"
    run(f"{GNU}-gcc", "-static", "-Wl,--gc-sections", *objects, "-lm", "-o", program)
    return program


def assembly(trace):
    """A trace as text for llvm-mca. Branches go nowhere: the instructions stand in the order in which they ran."""
    lines = []
    for line in run(f"{GNU}-objdump", "-D", "-b", "binary", "-m", "aarch64", "-z", trace).splitlines():
        fields = line.split("\t")
        if len(fields) < 3 or not fields[0].endswith(":"):
            continue
        name, operands = fields[2], fields[3].split(" //")[0].strip() if len(fields) > 3 else ""
        if name.startswith(".") or name == "udf":
            raise SystemExit(f"objdump does not know an instruction: {line}")
        if name in ("b", "bl", "br", "blr", "ret"):
            name, operands = "b", "#0"  # Calls too: llvm-mca would give them a latency of 100 cycles.
        elif name.startswith(("b.", "cb", "tb", "adr")):
            operands = re.sub(r"0x[0-9a-f]+( <.*>)?$", "#0", operands)
        lines.append(f"{name}\t{operands}")
    return "\n".join(lines) + "\n"


class Tools:
    """qemu with the trace plugin, and llvm-mca."""

    def __init__(self, arguments, folder):
        self.qemu, self.mca, self.folder = arguments.qemu, arguments.llvm_mca, folder
        self.plugin = folder / "trace.so"
        run("cc", "-O2", "-shared", "-fPIC", HERE / "trace.c", "-o", self.plugin)

    def cost(self, core, shape, program, *arguments):
        """The cost of one marked product of a program on a core."""
        trace = Path(tempfile.mkstemp(dir=self.folder)[1])
        kernel, weight_bytes = run(
            self.qemu, "-cpu", core.qemu, "-L", f"/usr/{GNU}", "-plugin", f"{self.plugin},out={trace}",
            program, *arguments, *shape,
        ).rsplit(maxsplit=1)  # fmt: skip
        instructions = trace.stat().st_size // 4
        if instructions == 0:
            raise SystemExit(f"{program} set no marks")
        cycles = None if shape == CHUNK else self.cycles(core, trace, instructions)
        trace.unlink()
        return Cost(kernel, instructions, cycles, int(weight_bytes), ROWS * shape[0] * shape[1])

    def cycles(self, core, trace, instructions):
        """How long the core's model in LLVM takes for a trace, every load from the first cache, every jump foreseen."""
        report = run(self.mca, f"-mtriple={TARGET}", f"-mcpu={core.mca}", f"-mattr={EXTENSIONS}", "-iterations=1",
                     "-summary-view", "-resource-pressure=0", "-instruction-info=0", input=assembly(trace))  # fmt: skip
        read, cycles = (int(re.search(rf"{what}:\s+(\d+)", report)[1]) for what in ("Instructions", "Total Cycles"))
        if read != instructions:
            raise SystemExit(f"llvm-mca read {read} instructions of {instructions}")
        return cycles

    def versions(self):
        first = (run(tool, "--version").splitlines()[0] for tool in (self.qemu, f"{GNU}-gcc", "rustc"))
        return [*first, "LLVM" + run(self.mca, "--version").split("LLVM")[1].splitlines()[0]]


def table(head, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)]
    return "\n".join(lines)


def sides(format):
    """Who has kernels for a format."""
    return SIDES[: 1 if format in OURS_ONLY else None]


def ratio(costs, core, format, shape):
    """The end of a row: how many of our cycles theirs are; without them their three cells are empty too."""
    if format in OURS_ONLY:
        return [""] * 4
    ours, theirs = (costs[core, side, format, shape].cycles for side in SIDES)
    return [f"{theirs / ours:.2f}"]


def decode_table(costs, core):
    rows = []
    for format in FORMATS:
        cells = []
        for side in sides(format):
            cost = costs[core, side, format, DECODE]
            cells += [cost.kernel, *(f"{count / cost.weight_bytes:.2f}" for count in (cost.instructions, cost.cycles))]
        rows.append([format, *cells, *ratio(costs, core, format, DECODE)])
    kinds = [f"{what}, {side}" for side in SIDES for what in ("kernel", "instructions/B", "cycles/B")]
    return table(["", *kinds, "cycles, llama.cpp's / ours"], rows)


def prefill_table(costs, core):
    rows = []
    for format in FORMATS:
        cells = []
        for side in sides(format):
            few, many = costs[core, side, format, PREFILL], costs[core, side, format, CHUNK]
            cells += [f"{cost.instructions / cost.products:.3f}" for cost in (few, many)]
            cells.append(f"{few.products / few.cycles:.1f}")
        rows.append([format, *cells, *ratio(costs, core, format, PREFILL)])
    counts = [f"instructions/MAC, {shape[0]} rows" for shape in (PREFILL, CHUNK)]
    kinds = [f"{what}, {side}" for side in SIDES for what in (*counts, f"MAC/cycle, {PREFILL[0]} rows")]
    return table(["", *kinds, "cycles, llama.cpp's / ours"], rows)


def board_tables(costs):
    """The boards, and GB/s of weights that each kernel could take on all cores of each."""
    rows = [
        [board.name, f"{board.cores} × {board.cpu} at {board.ghz} GHz", f"{board.peak}", board.reached]
        for board in BOARDS
    ]
    boards = table(["", "CPU", "memory's data sheet, GB/s", "reported by others"], rows)
    rows = []
    for format in FORMATS:
        row = [format]
        for board in BOARDS:
            for side in sides(format):
                cost = costs[board.core, side, format, DECODE]
                speed = board.cores * board.ghz / cost.cycles * cost.weight_bytes
                row.append(f"{speed:.1f}" if speed >= board.peak else f"**{speed:.1f}**")
            row += [""] * (len(SIDES) - len(sides(format)))
        rows.append(row)
    return boards, table(["", *(f"{board.name}, {side}" for board in BOARDS for side in SIDES)], rows)


def report(costs, versions):
    parts = [
        "# What the ARM kernels cost",
        f"Written by `cost.py` on {datetime.date.today()}; [README.md](README.md) says how and what it does not say."
        " **Cycles and GB/s are a model's, not measurements**: nothing here ran on a board. Instructions were counted.",
        "Tools: " + "; ".join(versions) + ".",
        f"## Decode: one activation row, {DECODE[1]} columns",
        "Per byte of weights, per core. Lower is better but for the last column.",
    ]
    for core in CORES:
        parts += [f"### {core.name} (model: {core.model})", decode_table(costs, core)]
    parts += [
        "## Where decode stops being memory-bound",
        "All cores times clock over cycles per byte: the bandwidth that a kernel could use up if its weights came from"
        " the first cache. A memory that delivers less bounds the speed; one that delivers more waits for the kernel."
        " Bold: less than the memory's data sheet. The Orins' Cortex-A78AE goes by the A76's cycles.",
        *board_tables(costs),
        f"## Prefill: {PREFILL[0]} and {CHUNK[0]} activation rows, {PREFILL[1]} columns",
        "MAC: a multiplication and addition of a weight and an activation.",
    ]
    for core in CORES:
        parts += [f"### {core.name}", prefill_table(costs, core)]
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="llama.cpp's source, the folder with ggml/ in it")
    parser.add_argument("--qemu", default="qemu-aarch64", help="of QEMU 6 to 8, built with plugins")
    parser.add_argument("--llvm-mca", default="llvm-mca")
    parser.add_argument("--out", default=HERE / "RESULTS.md", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        tools = Tools(arguments, folder)
        ours = build_ours()
        futures = {}
        for core in CORES:
            theirs = build_llama_cpp(arguments.source, core, folder)
            for format in FORMATS:
                for shape in (DECODE, PREFILL, CHUNK):
                    for side in sides(format):
                        program = [ours, "--once"] if side == SIDES[0] else [theirs]
                        job = pool.submit(tools.cost, core, shape, *program, format)
                        futures[core, side, format, shape] = job
        costs = {key: job.result() for key, job in futures.items()}
        arguments.out.write_text(report(costs, tools.versions()))


if __name__ == "__main__":
    main()
