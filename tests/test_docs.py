"""README.md and docs/*.md keep what they promise: Python runs as printed, commands are read by what they start.

The edits that docs/contributing.md shows are made in a copy of the repository, where its commands really run.
"""

import argparse
import ast
import contextlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch.distributed import launch
from torch.distributed import run as torchrun

import main
import ssm
from tests.hub import published_file, put
from tests.scripts.test_tables import VARIABLES
from training.settings.command_line import parse_args

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What a page's Python may use without making it: the model and images that its text speaks of.
CONTEXT = """
import timm, torch
import fusion, models_mamba
model = timm.create_model("vim_nano_patch4_32").eval()
fusion.inject(model, fusion.plan("all", depth=12, tokens=4))
images = torch.randn(2, 3, 32, 32)
"""
# Files that Python and commands name: published weights, or none of their own.
STAND_INS = {"vim_tiny.pth": "vim_tiny_patch16_224"}
ON_THE_HUB = ("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth")
# What a fence may call its language, and how the block is then tested.
LANGUAGES = {
    "python": "python",
    "py": "python",
    "bash": "shell",
    "sh": "shell",
    "shell": "shell",
    "console": "shell",
    "yaml": "config",
    "diff": "edit",  # made in a copy of the repository
    "text": "shown",  # what a program prints, formulas
}
COMMANDS = re.compile(r"(\w+=\S* )*(bash|sh|python|torchrun|source|sbatch|pip|git|cd|export|tensorboard|curl)\b")
PROGRAMS = ("pip", "git", "cd", "export", "tensorboard", "source", "curl")  # not ours: their words are not looked at


class Block(NamedTuple):
    """A fenced or indented block of a page, with its first line's number."""

    page: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page):
    """Every fenced and every indented block, in order."""
    lines, found, i = page.read_text().splitlines(), [], 0
    while i < len(lines):
        fence = re.match(r"\s*(`{3,}|~{3,})\s*(\S*)", lines[i])
        start, body = i, []
        if fence:
            i += 1
            while not lines[i].strip().startswith(fence[1]):
                body.append(lines[i])
                i += 1
            found.append(Block(page, start + 1, kind_of("\n".join(body), fence[2]), "\n".join(body)))
        elif lines[i].startswith("    ") and (i == 0 or not lines[i - 1].strip()):
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                body.append(lines[i][4:])
                i += 1
            text = "\n".join(body).rstrip()
            found.append(Block(page, start + 1, kind_of(text), text))
            continue
        i += 1
    return found


def kind_of(text, language=""):
    """How a block is tested; `unknown` fails."""
    if language:
        return LANGUAGES.get(language.lower(), "unknown")
    with contextlib.suppress(ValueError):  # quotation marks that no shell would take
        if all(COMMANDS.match(line) for line in commands_of(text)):
            return "shell"
    try:
        ast.parse(text)
    except SyntaxError:
        return "unknown"
    return "python"


def commands_of(text):
    """The commands of a block, one line each, without comments and prompts."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [shlex.join(shlex.split(line.removeprefix("$ "), comments=True)) for line in joined.splitlines()]
    return [line for line in lines if line]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_has_a_kind(block):
    assert block.kind != "unknown", f"{block}: neither Python nor commands; give its language"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("```\npython main.py --epochs 3\n```", "shell"),
        ("    A=1 bash scripts/demo.sh   # it\n\n    python main.py", "shell"),
        ("```yaml\nlr: 3\n```", "config"),
        ("    import timm\n    x = 1", "python"),
        ("```rust\nfn\n```", "unknown"),
        ("    tree of files\n    and more", "unknown"),
    ],
)
def test_kinds_of_blocks(tmp_path, text, kind):
    (tmp_path / "page.md").write_text(f"Text:\n\n{text}\n\nMore.\n")
    assert [block.kind for block in blocks_of(tmp_path / "page.md")] == [kind]


# Python


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory and a cache of the hub with the files that pages name; the best scan again afterwards."""
    monkeypatch.chdir(tmp_path)
    for name, model in STAND_INS.items():
        torch.save({"model": timm.create_model(model).state_dict()}, name)
    put(tmp_path / "hub", *ON_THE_HUB, published_file("vim_tiny_patch16_224"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    yield tmp_path
    ssm.use_backend("auto")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs_as_printed(page, workplace):
    torch.manual_seed(0)
    names = {}
    exec(CONTEXT, names)
    for block in BLOCKS:
        if block.page == page and block.kind == "python":
            # Lines are numbered as on the page, for a traceback to name them.
            exec(compile("\n" * (block.line - 1) + block.text, page.name, "exec"), names)
    for file in workplace.glob("*.onnx"):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: names["images"].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), names["model"](names["images"]), rtol=1e-4, atol=1e-5)


# Edits

CONTRIBUTING = ROOT / "docs" / "contributing.md"
NOT_COPIED = shutil.ignore_patterns(".*", "tests", "docs", "results", "output", "pictures", "__pycache__")


def make_edit(block, root):
    """Make the edit of a block, whose first line names the file: `+` adds a line, `-` takes one out."""
    name, *lines = block.text.splitlines()
    path = root / name.removeprefix("# ")
    before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    text = path.read_text()
    assert text.count(before) == 1, f"{block}: {name} has these lines {text.count(before)} times"
    path.write_text(text.replace(before, after))


# Runs the commands of a page one after the other, in one process that has imported PyTorch once.
DRIVER = """
import json, sys
import main, ssm.__main__
for program, *words in json.loads(sys.argv[1]):
    {"main.py": main.main, "ssm": ssm.__main__.main}[program](words)
"""


def test_edits_of_contributing_work(tmp_path):
    shutil.copytree(ROOT, tmp_path / "copy", ignore=NOT_COPIED)
    pixels, labels = np.random.default_rng(0).integers(256, size=(8, 8, 8), dtype=np.uint8), np.arange(8).reshape(8, 1)
    arrays = {"train_images": pixels, "train_labels": labels, "val_images": pixels, "val_labels": labels}
    np.savez(tmp_path / "copy" / "shapes.npz", **arrays)
    commands, edits = [], 0
    for block in (block for block in BLOCKS if block.page == CONTRIBUTING):
        if block.kind == "edit":
            make_edit(block, tmp_path / "copy")
            edits += 1
        elif block.kind == "python" and block.text.startswith("# "):
            (tmp_path / "copy" / block.text.splitlines()[0].removeprefix("# ")).write_text(f"{block.text}\n")
        elif block.kind == "shell":
            commands += [
                shlex.split(line.removeprefix("python ").removeprefix("-m ")) for line in commands_of(block.text)
            ]
    driver = [sys.executable, "-c", DRIVER, json.dumps(commands)]
    result = subprocess.run(driver, cwd=tmp_path / "copy", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert edits == 5
    assert len(commands) == result.stdout.count("everything works") + 1 == 5
    assert float(re.search(r"doubling +cpu +largest error (\S+),", result.stdout)[1]) < 1e-5


EDITS = [block for block in BLOCKS if block.kind == "edit"]


@pytest.mark.parametrize("block", EDITS, ids=str)
def test_edits_hold_when_a_comment_changes(block):
    """The lines of the code that an edit shows hold code alone: who rewords a comment needn't know of this page."""
    shown = [line for line in block.text.splitlines()[1:] if line[0] in " -"]
    assert [line for line in shown if "#" in line] == []


def test_an_edit_of_lines_that_are_gone_fails(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(AssertionError, match="has these lines 0 times"):
        make_edit(Block(CONTRIBUTING, 1, "edit", "# a.py\n-x = 2\n+x = 3"), tmp_path)


# Commands


class Parsed(BaseException):
    """A program has read its command line, and is not to go on."""


# Stands for the environment's programs: counts one GPU, reads a run's settings, and notes what the scripts start.
RECORDER = f"""#!/bin/sh
case "$1,$#" in
-c,2) echo 1 ;;
-c,*) exec {sys.executable} "$@" ;;
*) echo "python $@" >> calls ;;
esac
"""


@pytest.fixture
def house(tmp_path):
    """A copy of the scripts with nothing to install, programs that note how they were called, and the pages' runs."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("fmnist", "equal_cost/no-seed2", "demo/plain"):
        run = tmp_path / "output" / name
        run.mkdir(parents=True)
        (run / "checkpoint.pth").touch()
        (run / "args.json").write_text('{"model": "vim_nano_patch4_32", "lr": 0.002}')
    (tmp_path / "scripts" / "setup.sh").write_text("")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for program, text in (("python", RECORDER), ("ruff", "#!/bin/sh\n")):
        path = tmp_path / ".venv" / "bin" / program
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def check_command(line, house, monkeypatch):
    """See that what a command starts is there and takes its words."""
    words, variables = shlex.split(line), {}
    while re.fullmatch(r"\w+=.*", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    for sign in ("&&", ";", "|"):
        if sign in words:
            cut = words.index(sign)
            check_command(shlex.join(words[:cut]), house, monkeypatch)
            return check_command(shlex.join(words[cut + 1 :]), house, monkeypatch)
    program, *words = words
    if program == "sbatch":
        assert (ROOT / words[0]).is_file(), line
        program, words = "bash", words[1:]
    if program in ("bash", "sh"):
        check_script(words, variables, house, monkeypatch)
    elif program == "torchrun":
        check_launch(torchrun, words, monkeypatch)
    elif program == "python":
        check_python(words, monkeypatch)
    else:
        assert program in PROGRAMS, f"{line}: an unknown program"
    return None


def check_script(words, variables, house, monkeypatch):
    """Run a script of ours among recorders, and check what it starts."""
    assert (ROOT / words[0]).is_file(), words[0]
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    result = subprocess.run(
        ["bash", *words], cwd=house, env=clean | variables, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    calls = house / "calls"
    for call in calls.read_text().splitlines() if calls.exists() else ():
        check_python(shlex.split(call)[1:], monkeypatch)


def check_python(words, monkeypatch):
    """Python's own flags, then a module or a program of ours with its flags."""
    while words[0].startswith("-") and words[0] != "-m":
        words = words[2:] if words[0] in ("-W", "-X") else words[1:]
    if words[0] == "-m":
        module, *words = words[1:]
        launchers = {"torch.distributed.launch": launch, "torch.distributed.run": torchrun}
        if module in launchers:
            return check_launch(launchers[module], words, monkeypatch)
        spec = importlib.util.find_spec(module)
        assert spec, f"python -m {module}: there is no such program"
        if spec.submodule_search_locations:  # a package
            spec = importlib.util.find_spec(f"{module}.__main__")
            assert spec, f"python -m {module}: there is no such program"
        return None if module == "pytest" else check_flags(spec.origin, words, monkeypatch)
    return check_flags(ROOT / words[0], words[1:], monkeypatch)


def check_launch(launcher, words, monkeypatch):
    """Flags of PyTorch's launcher, and of the program that it starts."""
    args = launcher.parse_args(words)
    check_flags(ROOT / args.training_script, args.training_script_args, monkeypatch)


def check_flags(program, words, monkeypatch):
    """Let a program read its words, and no more; main.py also looks for contradictions and unknown names."""
    words = [word for word in words if word != "--help"]
    if Path(program).name == "main.py":
        return main.check_names(parse_args(words))
    if not re.search(r"parse_args|parser\.read", Path(program).read_text()):
        assert not words, f"{program}: takes no flags"
        return None
    parse = argparse.ArgumentParser.parse_known_args

    def stop(self, args=None, namespace=None):
        _, unknown = parse(self, args, namespace)
        assert not unknown, f"{program}: {unknown}"
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patch.setattr("sys.argv", [str(program), *words])
        patch.setattr("training.runtime.process.prepare_process", lambda: None)  # it is for processes of their own
        with pytest.raises(Parsed):
            runpy.run_path(str(program), run_name="__main__")


# Those of contributing.md need its edits, and run above.
PRINTED = [
    (str(block), line)
    for block in BLOCKS
    if block.kind == "shell" and block.page != CONTRIBUTING
    for line in commands_of(block.text)
]


def inline_commands(page):
    """Whole commands within sentences; one that leaves something out with dots is none."""
    text = re.sub(r"(?m)^ {4}.*$|^```[^`]*```$", "", page.read_text())
    found = re.findall(r"`((?:bash|python|torchrun|sbatch)\s[^`]+)`", text)
    return [(page.name, " ".join(command.split())) for command in found if "..." not in command]


COMMANDS_OF_PAGES = [*PRINTED, *(command for page in PAGES for command in inline_commands(page))]


@pytest.mark.parametrize(("place", "line"), COMMANDS_OF_PAGES, ids=[f"{a}-{b[:40]}" for a, b in COMMANDS_OF_PAGES])
def test_commands_are_read(place, line, house, monkeypatch):
    check_command(line, house, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "python main.py --epoch 3",
        "python main.py --model vim_tinny_patch16_224",
        "python scripts/summarize.py output --formats csv",
        "python scripts/none.py",
        "bash scripts/cifar100_vim_tiny.sh uper",
        "bash scripts/cifar100_vim_tiny.sh upper -- --epoch 3",
        "torchrun --nprocs=2 main.py",
        "sbatch scripts/none.sbatch scripts/fmnist_cpu.sh table",
        "make all",
    ],
)
def test_a_wrong_command_fails(line, house, monkeypatch):
    with pytest.raises((AssertionError, SystemExit, ValueError, OSError)):
        check_command(line, house, monkeypatch)


def test_configs_are_read(tmp_path):
    for block in (block for block in BLOCKS if block.kind == "config"):
        (tmp_path / "config.yaml").write_text(block.text)
        parse_args(["--config", str(tmp_path / "config.yaml")])


# The text around them


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?m)^```[^`]*```$", "", page.read_text())
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
    for target, anchor in links:
        if "://" not in target:
            path = page.parent / target if target else page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_every_page_can_be_reached_from_the_front_door():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        pages = (page.parent / name for name in re.findall(r"\]\(([^)#:\s]+\.md)", page.read_text()))
        waiting += {path.resolve() for path in pages} - reached
    assert set(PAGES) <= reached


def test_the_front_door_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_fit_a_page(page):
    rows = [line.strip() for line in page.read_text().splitlines() if line.strip().startswith("|")]
    assert [row for row in rows if row.strip("|").count("|") > 7] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page):
    """At most 120 characters; rows of tables and links can't be broken."""
    lines = [line for line in page.read_text().splitlines() if not line.strip().startswith(("|", "![", "["))]
    assert [line for line in lines if len(line) > 120] == []
