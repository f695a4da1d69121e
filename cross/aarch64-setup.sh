#!/usr/bin/env bash
# Gets what it takes to build for aarch64 Linux on this machine and to run the result: C compilers and qemu from apt,
# and Rust's standard library for aarch64 from rustup or, where rustup cannot download, built from Debian's sources.
#
#   cross/aarch64-setup.sh [FOLDER]     FOLDER: target/aarch64-setup
#   . FOLDER/env.sh                     from then on cargo's --target and c_examples' TARGET work
#
# For Debian and Ubuntu on x86-64. Only FOLDER, apt's packages and rustup's list of targets change.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/apt.sh
target=aarch64-unknown-linux-gnu
folder=$(realpath -m "${1:-target/aarch64-setup}")
mkdir -p "$folder"

say() { echo "aarch64-setup: $*" >&2; }

install() { # install PACKAGE...: those that are missing
  local missing=() package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || { say "please install ${missing[*]}"; return 1; }
  say "installing ${missing[*]}"
  apt-get -qq -o DPkg::Lock::Timeout=600 update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install -y --no-install-recommends \
    "${missing[@]}" >/dev/null
}

has_std() { # has_std RUSTC [OPTION]: is a standard library for the target there?
  compgen -G "$("$@" --print target-libdir --target "$target")/libstd-*.rlib" >/dev/null
}

version() { # version RUSTC: 1.95.0
  "$1" --version | cut -d ' ' -f 2
}

# Debian's backports hold several versions of Rust's sources.
download_sources() { # download_sources VERSION: into FOLDER/sources
  local package
  foreign_apt "$folder/apt" trixie-backports "$(dpkg --print-architecture)" || return 1
  package=$(apt-cache "${apt_options[@]}" madison rust-src | cut -d '|' -f 2 | tr -d ' ')
  package=$(grep "^${1//./\\.}+" <<<"$package" | head -n 1)
  [ -n "$package" ] || return 1
  (cd "$folder/apt" && apt-get "${apt_options[@]}" download "rust-src=$package" >&2) || return 1
  dpkg-deb -x "$folder"/apt/rust-src_*.deb "$folder/sources"
}

# What comes out fits this one compiler. A stable compiler builds a standard library only when told by RUSTC_BOOTSTRAP;
# nothing else is built with that. No setting of the caller's gets in.
build_std() { # build_std RUSTC SOURCES: makes FOLDER/sysroot
  local lib=$folder/sysroot/lib/rustlib/$target/lib
  say "building the standard library of Rust $(version "$1") for $target"
  (
    unset "${!CARGO_TARGET_@}" "${!CARGO_BUILD_@}" "${!CARGO_PROFILE_@}" CARGO_ENCODED_RUSTFLAGS RUSTC_WRAPPER
    export RUSTC=$1 RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zforce-unstable-if-unmarked --cap-lints=allow'
    cd "$2/library"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc cargo build --quiet --release --locked \
      --target "$target" --target-dir "$folder/build" --package sysroot --features backtrace,panic-unwind
  )
  rm -rf "$folder/sysroot"
  mkdir -p "$lib"
  cp "$folder/build/$target/release/deps/"*.rlib "$lib"
}

install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user

compiler=$(rustc --print sysroot)/bin/rustc
settings=()
if ! has_std "$compiler" && ! { command -v rustup >/dev/null && rustup --quiet target add "$target" 2>/dev/null; }; then
  say "rustup cannot download $target"
  wanted=$("$compiler" -vV)
  if ! [ "$(cat "$folder/built-for" 2>/dev/null)" = "$wanted" ]; then
    rm -f "$folder/built-for"
    sources=$folder/sources/usr/src/rustc-$(version "$compiler")
    if ! download_sources "$(version "$compiler")"; then
      say "there are no sources of Rust $(version "$compiler"): the distribution's own compiler builds for $target"
      install rustc-web rust-web-src
      compiler=/usr/bin/rustc
      sources=/usr/src/rustc-$(version "$compiler")
    fi
    build_std "$compiler" "$sources"
    rm -rf "$folder/build" "$folder/sources" "$folder/apt"
    echo "$compiler" >"$folder/compiler"
    echo "$wanted" >"$folder/built-for"
  fi
  settings=("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS=--sysroot=$folder/sysroot"
    "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTDOCFLAGS=--sysroot=$folder/sysroot")
  if [ "$(cat "$folder/compiler")" = /usr/bin/rustc ]; then
    settings+=(RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc)
  fi
fi
settings+=(CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64
  CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
  CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
  NM_aarch64_unknown_linux_gnu=aarch64-linux-gnu-nm
  QEMU_LD_PREFIX=/usr/aarch64-linux-gnu)
printf 'export %q\n' "${settings[@]}" >"$folder/env.sh"
say "ready: . $folder/env.sh"
