"""Trainings whose losses must stay as they are: 30 steps of one seed, without fusion and with every strategy.

    python -m tests.golden_training     # write tests/golden/training.json anew, after a change that may alter results

They train in fp64. In fp32 the last bits of a sum depend on the processor and on the number of threads, and now and
then decide which of two almost equally similar pairs of tokens fuses, which alters a loss by far more than rounding
does. The run called fp32 is as people train, and fuses nothing. Each run is main.py's, from the digits to the learning
rate of a step, up to the loop over epochs.
"""

import json
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
import torch

import fusion
import main
import ssm
from runner import Trainer

FILE = Path(__file__).parent / "golden" / "training.json"
STEPS = 30
# What depends on versions of Pillow, or on whether PyTorch was built with MKL, is off: augmentation and drop path.
FLAGS = (
    "--model vim_pico_patch2_8 --data-set DIGITS --batch-size 4 --epochs 1 --warmup-epochs 0 --lr 1e-3 --unscale-lr"
    " --sched-on-updates --no-aug --drop-path 0 --num_workers 0 --device cpu"
)
RUNS = {
    "fp32": "",
    "no": "--fusion-strategy no",
    "all": "--fusion-strategy all --fusion-total 12",
    "interleaved": "--fusion-strategy interleaved --fusion-total 12",
    "lower": "--fusion-strategy lower --fusion-layer 3 --fusion-total 12",
    "upper": "--fusion-strategy upper --fusion-layer 3 --fusion-total 12",
}


def losses(name: str, backend: str) -> list[float]:
    """Return the loss of each step of a run, under a scan backend."""
    found = []

    def train(trainer: Trainer) -> None:
        def after_step() -> None:
            trainer.state.set_rate()
            found.append(trainer.state.sums.last_loss)

        trainer.start_epoch()
        trainer.train(islice(trainer.train_batches, STEPS), after_step)

    with pytest.MonkeyPatch.context() as patch, precision(torch.float32 if name == "fp32" else torch.float64):
        patch.setattr(main, "train_and_log", train)
        main.main([*FLAGS.split(), *RUNS[name].split(), "--scan-backend", backend])
    return found


@contextmanager
def precision(dtype: torch.dtype):
    """Make weights and images of this dtype inside a `with` block, and leave the choice of backends as it was."""
    torch.set_default_dtype(dtype)
    try:
        with ssm.use_backend("auto"), fusion.backend("auto"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


if __name__ == "__main__":
    rows = {name: losses(name, "reference") for name in RUNS}
    lines = (f'"{name}": {json.dumps([float(f"{loss:.12g}") for loss in row])}' for name, row in rows.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
