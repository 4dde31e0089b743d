#!/usr/bin/env bash
# Set up, then run the linter and all tests. Arguments go to pytest: bash scripts/test.sh tests/fusion -k upper
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh --tests
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest "$@"
