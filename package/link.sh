#!/bin/sh
# Makes the libraries that are installed of the static library that cargo makes. Cargo's own have too much in them: its
# shared library has neither versions nor a SONAME and exports what dependencies export, and its static one defines Rust's
# runtime, so that it does not link beside another Rust library.
#
#   package/link.sh ARCHIVE FOLDER      CC: the C compiler of the target (cc); LDFLAGS: more for the shared library
#
#   FOLDER/libedgellm.so.0.1.0          exports the header's functions, versioned, and nothing else
#   FOLDER/libedgellm.so{,.0.1}         links to it
#   FOLDER/libedgellm.a                 one object that defines the header's functions, all else in it is local
#   FOLDER/symbols.txt                  their names
#
# It needs GNU's ld and objcopy, of the target, where CC has them.
set -eu
[ $# = 2 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root=$(dirname "$0")/..
archive=$1 out=$2
: "${CC:=cc}"
tool() { $CC -print-prog-name="$1"; }

version=$(sed -n 's/^version = "\(.*\)"/\1/p;/^version/q' "$root/Cargo.toml")
major=${version%%.*} rest=${version#*.}
# While 0.x every minor may break: then it is part of the name.
if [ "$major" = 0 ]; then abi=0.${rest%%.*} node=$abi; else abi=$major node=$major.0; fi

mkdir -p "$out"
part=$(mktemp -d "$out/.part-XXXXXX")
trap 'rm -rf "$part"' EXIT

# The header is the list: what stands after EDGELLM_API, before the parenthesis.
sed -n '/^#/d;/^ *\/\//d;/^EDGELLM_API/,/;/p' "$root/include/edgellm.h" | grep -o 'edgellm_[a-z0-9_]*(' | tr -d '(' |
  LC_ALL=C sort -u >"$part/symbols.txt"
grep -qx edgellm_load "$part/symbols.txt"

# shellcheck disable=SC2046,SC2086 # Words are meant.
link() {
  printf 'LIBEDGELLM_%s {\n  global:\n%s\n  local: *;\n};\n' "$node" "$(sed 's/.*/    &;/' "$part/symbols.txt")" >"$part/map"
  $CC -shared -o "$part/so" $(sed 's/^/-Wl,--require-defined=/' "$part/symbols.txt") "$archive" ${LDFLAGS:-} \
    -Wl,--version-script="$part/map" -Wl,-soname,"libedgellm.so.$abi" -Wl,-z,defs -Wl,-z,relro,-z,now \
    -Wl,-z,noexecstack -Wl,--gc-sections -Wl,--as-needed -lgcc_s -lpthread -ldl -lm -lc
  "$(tool strip)" --strip-unneeded "$part/so"

  # Section groups are resolved here: objcopy would leave members of a group that has lost its symbol.
  "$(tool ld)" -r --force-group-allocation --gc-sections -e edgellm_load $(sed 's/^/--require-defined=/' "$part/symbols.txt") \
    -o "$part/edgellm.o" "$archive"
  # What was collected leaves its undefined symbols, weak ones turned into strong ones: --strip-unneeded. Rust's standard
  # library comes with bitcode beside its code, which older LLVM plugins of the binutils do not survive.
  "$(tool objcopy)" --keep-global-symbols="$part/symbols.txt" --strip-unneeded \
    --remove-section=.llvmbc --remove-section=.llvmcmd "$part/edgellm.o"
  (cd "$part" && "$(tool ar)" rcsD a edgellm.o)
}
link

# Names change at the end, each in one move: whoever links meanwhile finds whole files.
mv "$part/symbols.txt" "$out/symbols.txt"
mv "$part/a" "$out/libedgellm.a"
mv "$part/so" "$out/libedgellm.so.$version"
ln -sfn "libedgellm.so.$version" "$out/libedgellm.so.$abi"
ln -sfn "libedgellm.so.$version" "$out/libedgellm.so"
