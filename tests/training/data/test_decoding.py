"""Decoding: whatever is wrong with a file is an OSError that names it, and brightness is that of the file."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from training.data.decoding import open_image, to_rgb


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before=(), header=None):
    """A PNG file of 8x8 pixels with more chunks before its data, or another header."""
    whole = io.BytesIO()
    Image.new("RGB", (8, 8)).save(whole, "PNG")
    data = whole.getvalue()
    start = 8 + 25  # signature and IHDR
    return (
        data[:8] + (chunk(b"IHDR", header) if header is not None else data[8:start]) + b"".join(before) + data[start:]
    )


DAMAGED = {
    "zTXt": png([chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(70 << 20)))]),
    "tRNS": png([chunk(b"tRNS", b"\0")]),
    "cHRM": png([chunk(b"cHRM", b"\0" * 5)]),
    "gAMA": png([chunk(b"gAMA", b"\0")]),
    "pHYs": png([chunk(b"pHYs", b"\0")]),
    "IHDR": png(header=b"\0\0"),
    "acTL": png([chunk(b"acTL", b"\0")]),
    "PPM": b"P6\n8 8\n0\n" + bytes(192),
    "PPM size": b"P6\n8 x\n255\n" + bytes(192),
    "PGM": b"P5\n8 8\n99999999\n" + bytes(64),
    "cut": png()[:-40],
    "text": b"no image",
    "nothing": b"",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_an_oserror_with_the_name(name, tmp_path):
    path = tmp_path / "damaged.png"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(OSError, match=r"damaged\.png") as caught:
        to_rgb(open_image(str(path)))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        open_image(str(tmp_path / "absent"))


def test_a_bomb_is_named(tmp_path, monkeypatch):
    (tmp_path / "large.png").write_bytes(png())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match=r"large\.png: broken image"):
        open_image(str(tmp_path / "large.png"))


RAMP = np.linspace(0, 65535, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a.png", RAMP.astype(np.uint16)),
        ("a.pgm", RAMP.astype(np.uint16)),
        ("a.tif", RAMP.astype(np.uint16)),
        ("b.tif", RAMP.astype(np.int32)),
        ("c.tif", (RAMP / 65535).astype(np.float32)),
        ("d.tif", (RAMP / 257).astype(np.float32)),
        ("b.png", (RAMP / 257).astype(np.uint8)),
    ],
)
def test_brightness_is_kept(name, stored, tmp_path):
    Image.fromarray(stored).save(tmp_path / name)
    found = np.asarray(to_rgb(open_image(str(tmp_path / name)))).astype(float)
    assert found.shape == (8, 8, 3)
    assert np.abs(found - RAMP[..., None] / 257).max() <= 1


@pytest.mark.parametrize("value", [-1.0, 300.0, np.nan, np.inf])
def test_floats_that_are_no_brightness_are_refused(value, tmp_path):
    Image.fromarray(np.array([[0.5, value]], np.float32)).save(tmp_path / "odd.tif")
    with pytest.raises(OSError, match=r"odd\.tif: broken image \(grey values from"):
        to_rgb(open_image(str(tmp_path / "odd.tif")))
