#!/usr/bin/env bash
# Set up, then run the linter and all tests. Arguments go to pytest: bash scripts/test.sh tests/fusion -k upper
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || echo "test.sh: the linter and all tests, 7 to 20 minutes on 2 cores (installation aside); progress in percent"
bash scripts/setup.sh --tests
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# One process a core and one thread in each. A process that is done takes half of the tests that another still has, so
# that all end together.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
.venv/bin/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal "$@"
