#!/usr/bin/env bash
# Make .venv once and install requirements; returns at once if nothing changed.
#
#   bash scripts/setup.sh            what training needs
#   bash scripts/setup.sh --tests    and what the tests need
#
# PYTHON names the interpreter (3.10 to 3.13), python3 if not set.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
requirements=(-r vim_requirements.txt)
files=(vim_requirements.txt)
if [ "${1:-}" = "--tests" ]; then
    requirements+=(-r test_requirements.txt)
    files+=(test_requirements.txt)
fi

if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
    if [ -e .venv ] && [ ! -e .venv/unfinished ]; then
        echo "setup: .venv has no working pip: install pip in it, or remove it to have it made anew" >&2
        exit 2
    fi
    if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
        echo "setup: $python must be Python 3.10 to 3.13; name another one with PYTHON=..." >&2
        exit 2
    fi
    echo "setup: making .venv with $("$python" --version)"
    rm -rf .venv # which an interrupted call left
    mkdir .venv && touch .venv/unfinished
    "$python" -m venv .venv || { echo "setup: no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
    rm .venv/unfinished
fi

# A stamp of the requirements that were installed last lets a second call return at once.
stamp=".venv/installed${1:-}"
wanted="$(cat "${files[@]}")"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "setup: installing ${files[*]} (PyTorch is large: some minutes)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "${requirements[@]}"
    printf '%s\n' "$wanted" > "$stamp"
fi

if command -v nvidia-smi > /dev/null; then
    cat <<'EOF'
setup: an NVIDIA GPU is here, and nothing more need be installed: Triton, which comes with PyTorch, scans on it.
setup: mamba-ssm and causal-conv1d may be added (vim_requirements_cuda.txt); python -m ssm measures which is faster.
EOF
fi
