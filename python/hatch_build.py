"""Puts the library and what the header declares into the wheel, and says which machines it is for.

LIBEDGELLM_LIBRARY is the shared library that package/link.sh made.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import declarations  # noqa: E402

MACHINES = {62: "x86_64", 183: "aarch64"}  # ELF's numbers.


def platform_tag(library: bytes) -> str:
    """Of a shared library: its machine, and the newest glibc that it asks for."""
    machine = MACHINES[int.from_bytes(library[18:20], "little")]
    newest = max(int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?=[.\0])", library))
    return f"manylinux_2_{max(newest, 17)}_{machine}"


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version, build_data):
        library = Path(os.environ["LIBEDGELLM_LIBRARY"]).resolve()
        self.folder = tempfile.TemporaryDirectory()
        header = HERE.parent / "include" / "edgellm.h"
        generated = Path(self.folder.name, "_c.py")
        generated.write_text(declarations.generate(header.read_text()))
        build_data["force_include"] |= {
            str(library): "libedgellm/libedgellm.so",
            str(generated): "libedgellm/_c.py",
        }
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(library.read_bytes())}"

    def finalize(self, version, build_data, artifact_path):
        self.folder.cleanup()
