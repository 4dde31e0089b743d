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


@pytest.fixture
def set_up(tmp_path):
    """Runs the script in a directory of its own, and returns the ended process."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "vim_requirements.txt").write_text("")
    executable(tmp_path / "pretender", PRETENDER)
    environment = os.environ | {"PYTHON": str(tmp_path / "pretender")}
    script = ["bash", tmp_path / "scripts" / "setup.sh"]
    return lambda: subprocess.run(script, env=environment, capture_output=True, text=True)


def environment_at(folder, *files, python=None):
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    if python:
        executable(folder / "bin" / "python", python)


@pytest.mark.parametrize("left", [None, (), ("half",)])
def test_what_an_interrupted_call_left_is_made_again(set_up, tmp_path, left):
    if left is not None:
        environment_at(tmp_path / ".venv", "unfinished", *left)
    assert set_up().returncode == 0
    assert (tmp_path / ".venv" / "made").exists()
    assert not (tmp_path / ".venv" / "unfinished").exists()
    assert not (tmp_path / ".venv" / "half").exists()


def test_an_environment_is_not_made_twice(set_up, tmp_path):
    environment_at(tmp_path / ".venv", python="#!/bin/sh\nexit 0\n")
    assert set_up().returncode == 0
    assert not (tmp_path / ".venv" / "made").exists()


@pytest.mark.parametrize("python", [None, "#!/bin/sh\nexit 1\n"])
def test_anothers_environment_without_pip_stays(set_up, tmp_path, python):
    environment_at(tmp_path / ".venv", "packages", python=python)
    ended = set_up()
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert ".venv has no working pip" in ended.stderr
    assert (tmp_path / ".venv" / "packages").exists()
