"""Interruption: a signal that comes while images are read stops the training, whatever reads them."""

import signal

import pytest
import torch
from PIL import Image

import main
from training.data.broken_images import SkipBroken, collate_readable
from training.data.decoding import to_rgb
from training.runtime.interruption import InterruptedTraining, Interruption

FLAGS = "--data-set FOLDER --batch-size 8 --epochs 2 --num_workers 0 --drop-path 0.1".split()


class Interrupting(Image.Image):
    """An image whose decoder is interrupted."""

    def convert(self, *args, **kwargs):
        signal.raise_signal(signal.SIGTERM)


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return to_rgb(Interrupting())


@pytest.mark.parametrize("skipping", [False, True])
def test_a_decoder_does_not_swallow_it(skipping):
    images = SkipBroken(Images()) if skipping else Images()
    loader = torch.utils.data.DataLoader(images, collate_fn=collate_readable if skipping else None)
    with Interruption() as interruption, pytest.raises(InterruptedTraining):
        list(interruption.between(loader))
    assert interruption.signal == "SIGTERM"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("skipping", [(), ("--skip-bad-images",)], ids=["", "skipping"])
def test_a_run_saves_and_goes_on_as_if_nothing_had_been(number, skipping, images, tmp_path, monkeypatch):
    flags = [*FLAGS, "--data-path", str(images), *skipping]
    main.main([*flags, "--output_dir", str(tmp_path / "whole")])

    convert, decoded = Image.Image.convert, []

    def interrupted(image, *args, **kwargs):
        decoded.append(image)
        if len(decoded) == 11:  # in the second batch
            signal.raise_signal(number)
        return convert(image, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "convert", interrupted)
    with pytest.raises(SystemExit) as exit_:
        main.main([*flags, "--output_dir", str(tmp_path / "parts")])
    assert exit_.value.code == 128 + number
    main.main([*flags, "--output_dir", str(tmp_path / "parts"), "--auto-resume"])
    saved = [torch.load(tmp_path / name / "checkpoint.pth", weights_only=True) for name in ("parts", "whole")]
    torch.testing.assert_close(saved[0]["model"], saved[1]["model"], rtol=0, atol=0)
