#!/usr/bin/env bash
# Writes the lock files of this folder from pyproject.toml: `make lock`, or `make lock UPGRADE=1` to let
# every package rise to its newest allowed version. Run from the repository root with uv on PATH or in $UV.
#
# A lock holds for Python 3.11 and 3.12: each is resolved for both, and a difference stops the script.
# Only wheels count, so that no lock names a package that would have to be compiled.
set -euo pipefail
uv="${UV:-uv}"
upgrade=()
[ -n "${UPGRADE:-}" ] && upgrade=(--upgrade)
common=(pyproject.toml --only-binary :all: --annotation-style line --custom-compile-command "make lock" --quiet)
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# compile NAME [uv's options]: writes requirements/NAME.txt, keeping the versions that stand there
compile() {
    "$uv" pip compile "${common[@]}" "${upgrade[@]}" --python-version 3.11 --output-file "requirements/$1.txt" "${@:2}"
    echo "lock: requirements/$1.txt, $(grep -c '==' "requirements/$1.txt") packages"
}

# same_on_3_12 NAME [uv's options]
same_on_3_12() {
    cp "requirements/$1.txt" "$scratch/$1.txt"
    "$uv" pip compile "${common[@]}" --python-version 3.12 --output-file "$scratch/$1.txt" "${@:2}"
    if ! diff <(grep -o '^[^ #]*' "requirements/$1.txt") <(grep -o '^[^ #]*' "$scratch/$1.txt"); then
        echo "lock: requirements/$1.txt differs between Python 3.11 and 3.12 (above); name the package in" \
            "requirements/always.in or pin it in pyproject.toml" >&2
        exit 1
    fi
}

# lock NAME PLATFORM [uv's options]: one platform, both Pythons
lock() {
    compile "$1" --python-platform "$2" "${@:3}"
    same_on_3_12 "$1" --python-platform "$2" "${@:3}"
}

cpu=(--extra cpu requirements/always.in --override requirements/without-cpu.txt)
as_cpu=(--constraint requirements/cpu-x86_64.txt)
lock cpu-x86_64 x86_64-manylinux_2_31 "${cpu[@]}"
lock cpu-aarch64 aarch64-manylinux_2_31 "${cpu[@]}" "${as_cpu[@]}"
lock gpu x86_64-manylinux_2_31 --extra gpu requirements/always.in \
    --override requirements/without-gpu.txt --constraint requirements/constraints-gpu.txt
# Machines that no vLLM wheel fits, macOS among them, and the tools: one file for every platform and Python.
compile torch-only --universal "${cpu[@]}" --override requirements/without-vllm.txt "${as_cpu[@]}"
# peft wants torch, which is there already.
compile dev --universal --extra dev "${as_cpu[@]}" --override requirements/without-cpu.txt
