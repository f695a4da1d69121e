"""The header in ctypes: the wheel's module _c. Written for edgellm.h as cbindgen makes it; what it does not know, it refuses.

    python declarations.py <include/edgellm.h >_c.py
"""

import re
import sys

HEAD = '''"""edgellm.h in ctypes. Generated from the header, do not edit."""

import ctypes
from pathlib import Path

lib = ctypes.CDLL(str(Path(__file__).with_name("libedgellm.so")))
'''

PLAIN = {
    "char": "ctypes.c_char",
    "float": "ctypes.c_float",
    "double": "ctypes.c_double",
    "size_t": "ctypes.c_size_t",
    **{f"{sign}int{bits}_t": f"ctypes.c_{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def kind(text, known, result=False):
    """The ctypes name of a C type without its declarator."""
    words = re.sub(r"\b(const|struct)\b", " ", text).replace("*", " * ").split()
    if len(words) == 1 and words[0] == "void":
        return "None"
    if "*" not in words:
        return PLAIN.get(words[0]) or known[words[0]]
    # A string that comes back is bytes; everything else that is pointed to is an address.
    return "ctypes.c_char_p" if result and words == ["char", "*"] else "ctypes.c_void_p"


def split(declaration):
    """`const char *name[8]` -> ("const char *", "name", 8)."""
    match = re.fullmatch(r"(.*?[\s*])(\w+)\s*(?:\[(\d+)\])?", declaration.strip(), re.S)
    assert match, declaration
    return match[1], match[2], int(match[3] or 0)


def generate(header):
    """The module's text."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", header, flags=re.S)
    out, known, seen = [HEAD], {}, set()
    for name, value in re.findall(r"^#define EDGELLM_(\w+) (-?\d+)$", text, re.M):
        out.append(f"{name} = {value}")
    text = re.sub(r"^[ ]*#(?:[^\n]*\\\n)*[^\n]*\n", "", text, flags=re.M)
    statement = re.compile(
        r"typedef struct (?P<opaque>\w+) (?P=opaque);"
        r"|typedef struct (?P<struct>\w+) \{(?P<fields>[^}]*)\} (?P=struct);"
        r"|typedef (?P<result>[\w *]+?)\(\*(?P<callback>\w+)\)\((?P<arguments>[^)]*)\);"
        r"|typedef (?P<of>\w+) (?P<alias>\w+);"
        r"|EDGELLM_API\s+(?:EDGELLM_CHECK\s+)?(?P<returns>[\w\s*]+?)(?P<function>edgellm_\w+)\((?P<parameters>[^)]*)\);"
    )
    types = lambda list_: [kind(split(one)[0], known) for one in list_.split(",") if one.strip() != "void"]  # noqa: E731
    for found in statement.finditer(text):
        if name := found["alias"]:
            known[name] = PLAIN[found["of"]]
        elif name := found["callback"]:
            known[name] = name.removeprefix("edgellm_")
            result = kind(found["result"], known)
            out.append(f"{known[name]} = ctypes.CFUNCTYPE({', '.join([result, *types(found['arguments'])])})")
        elif name := found["struct"]:
            known[name] = name.removeprefix("edgellm_")
            out.append(f"\n\nclass {known[name]}(ctypes.Structure):\n    _fields_ = [")
            for field in filter(str.strip, found["fields"].split(";")):
                base, word, count = split(field)
                times = f" * {count}" if count else ""
                out.append(f'        ("{word}", {kind(base, known)}{times}),')
            out.append("    ]\n\n")
        elif name := found["function"]:
            short = name.removeprefix("edgellm_")
            out.append(f"{short} = lib.{name}")
            out.append(f"{short}.restype = {kind(found['returns'], known, result=True)}")
            out.append(f"{short}.argtypes = [{', '.join(types(found['parameters']))}]")
            seen.add(name)
    left = re.sub(r'\s+|extern "C" \{|\}', "", statement.sub("", text))
    assert not left, f"the header has more than this can read: {left[:200]}"
    assert "edgellm_load" in seen
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.stdout.write(generate(sys.stdin.read()))
