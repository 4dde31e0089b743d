"""The set-up script, with an interpreter that only pretends to make an environment."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup.sh"
# Answers the version check, and `-m venv` by a python whose pip works.
PRETENDER = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p .venv/bin
    printf '#!/bin/sh\\nexit 0\\n' > .venv/bin/python
    chmod +x .venv/bin/python
    touch .venv/made
fi
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("python", "remade"), [(None, True), ("#!/bin/sh\nexit 1\n", True), ("#!/bin/sh\nexit 0\n", False)]
)
def test_an_environment_without_pip_is_made_again(tmp_path, python, remade):
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "vim_requirements.txt").write_text("")
    executable(tmp_path / "pretender", PRETENDER)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "old").touch()
    if python:
        executable(tmp_path / ".venv" / "bin" / "python", python)
    environment = os.environ | {"PYTHON": str(tmp_path / "pretender")}
    subprocess.run(["bash", tmp_path / "scripts" / "setup.sh"], env=environment, check=True, capture_output=True)
    assert (tmp_path / ".venv" / "made").exists() == remade
    assert (tmp_path / ".venv" / "old").exists() != remade
