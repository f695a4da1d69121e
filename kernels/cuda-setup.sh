#!/usr/bin/env bash
# Gets what it takes to compile the kernels, from Python packages: no root, no GPU, no toolkit of the system's.
#
#   kernels/cuda-setup.sh [FOLDER]     FOLDER: target/cuda-setup
#   . FOLDER/env.sh                    from then on cargo's --features cuda and kernels/check_sass.py work
#
# NVRTC 11.8 makes code for compute capabilities 7.5 to 9.0 that runs with every driver since CUDA 11.4, JetPack 5's and
# 6's among them; its ptxas checks the PTX. cuobjdump and nvdisasm read what came out. With NEW=1 also NVRTC 13, which
# makes code for 10.0 (B200), 11.0 (Jetson Thor, JetPack 7) and 12.0 (RTX 50). For x86-64 and aarch64 Linux.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-target/cuda-setup}")
mkdir -p "$folder"

# get NAME PACKAGE==VERSION...: into FOLDER/NAME, whole or not at all, and only when the list is another one than before.
get() {
  local name=$1 wanted part
  shift
  wanted=$(printf '%s\n' "$@")
  [ "$(cat "$folder/$name/packages" 2>/dev/null)" = "$wanted" ] && return 0
  echo "cuda-setup: getting $*" >&2
  part=$(mktemp -d "$folder/$name.XXXXXX")
  python3 -m pip --disable-pip-version-check install --quiet --no-deps --no-compile --only-binary=:all: \
    --target "$part" "$@"
  # Wheels do not keep that files are programs.
  find "$part/nvidia" -path '*/bin/*' -type f -exec chmod a+rx {} +
  printf '%s\n' "$@" >"$part/packages"
  chmod 755 "$part"
  rm -rf "${folder:?}/$name"
  mv "$part" "$folder/$name"
}

get nvrtc11 nvidia-cuda-nvrtc-cu11==11.8.89 nvidia-cuda-runtime-cu11==11.8.89 nvidia-cuda-nvcc-cu11==11.8.89
get tools nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37
nvrtc=$folder/nvrtc11/nvidia/cuda_nvrtc/lib/libnvrtc.so.11.2
if [ "${NEW:-0}" = 1 ]; then
  get nvrtc13 nvidia-cuda-nvrtc==13.5.37 nvidia-cuda-runtime==13.5.37 nvidia-cuda-crt==13.5.37 \
    nvidia-cuda-cccl==13.3.5.0.6
  nvrtc+=:$folder/nvrtc13/nvidia/cu13/lib/libnvrtc.so.13
fi
printf 'export %q\n' "NVRTC=$nvrtc" "CUOBJDUMP=$folder/tools/nvidia/cu13/bin/cuobjdump" \
  "PTXAS=$folder/nvrtc11/nvidia/cuda_nvcc/bin/ptxas" "EDGELLM_CUDA_CACHE=$folder/images" >"$folder/env.sh"
echo "cuda-setup: ready: . $folder/env.sh" >&2
