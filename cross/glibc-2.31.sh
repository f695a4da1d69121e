#!/usr/bin/env bash
# Builds the library and the program for aarch64 Linux with glibc 2.31 (JetPack 5, Ubuntu 20.04, Debian 11) or newer,
# without a container: against Debian 11's glibc, which comes from the mirror that this machine's apt uses. Then checks
# that they ask for nothing newer, and runs them with that glibc.
#
#   cross/aarch64-setup.sh && . target/aarch64-setup/env.sh
#   cross/glibc-2.31.sh [FOLDER]    FOLDER: target/glibc-2.31; makes FOLDER/aarch64-unknown-linux-gnu/release, and the
#                                   libraries in package below it
#
# With CUDA where NVRTC says what to compile its device code with: kernels/cuda-setup.sh && . target/cuda-setup/env.sh
# Ends with 3 where Debian 11 cannot be fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/apt.sh
target=aarch64-unknown-linux-gnu
folder=$(realpath -m "${1:-target/glibc-2.31}")
root=$folder/root

fetch() { # into root
  local link package
  rm -rf "$folder/apt" "$root"
  foreign_apt "$folder/apt" bullseye arm64 || return 1
  local packages=({libc6,libc6-dev,libgcc-s1,linux-libc-dev}:arm64)
  (cd "$folder/apt" && apt-get "${apt_options[@]}" download "${packages[@]}") || return 1
  for package in "$folder"/apt/*.deb; do dpkg-deb -x "$package" "$root" || return 1; done
  # Links from the root of the file system are to lead into this one.
  find "$root" -lname '/*' | while read -r link; do ln -snf "$root$(readlink "$link")" "$link"; done
  rm -rf "$folder/apt"
}

[ -e "$root/usr/lib/aarch64-linux-gnu/libc.so" ] || fetch || { echo 'Debian 11 cannot be fetched' >&2; exit 3; }

# The cross compiler would look into its own glibc's folders first.
cat >"$folder/cc" <<END
#!/bin/sh
exec aarch64-linux-gnu-gcc --sysroot=$root -B$root/usr/lib/aarch64-linux-gnu \\
  -isystem $root/usr/include/aarch64-linux-gnu -isystem $root/usr/include \\
  -L$root/usr/lib/aarch64-linux-gnu -L$root/lib/aarch64-linux-gnu "\$@"
END
chmod +x "$folder/cc"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$folder/cc
cargo build --release --features "cli${NVRTC:+,cuda}" --target "$target" --target-dir "$folder"

release=$folder/$target/release
CC=$folder/cc package/link.sh "$release/libedgellm.a" "$release/package"
"$folder/cc" -std=c99 -Iinclude c_examples/generate.c -o "$release/generate" \
  -L"$release/package" -ledgellm -Wl,-rpath,"$release/package"
for file in "$release"/{package/libedgellm.so,edgellm,generate}; do
  newest=$(aarch64-linux-gnu-objdump -T "$file" | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -n 1)
  echo "$(basename "$file") asks for $newest"
  [ "$(printf '%s\n' GLIBC_2.31 "$newest" | sort -V | tail -n 1)" = GLIBC_2.31 ]
done
export QEMU_LD_PREFIX=$root
qemu-aarch64 "$release/edgellm" --version
# The library loads and answers: there is no such model.
! said=$(qemu-aarch64 "$release/generate" /no/such/model.gguf question 2>&1) && grep EDGELLM_E_IO <<<"$said"
