"""Decode files and arrays to images of 8 bits; raise an error that names the file if one can't be decoded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from training.words import reason


def open_image(path: str) -> Image.Image:
    """Open an image without reading its pixels yet.

    Raises:
        OSError: The file is missing, or its header is broken; names the file.
    """
    with _naming(path):
        return Image.open(path)


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode an image to RGB with 8 bits per channel.

    Raises:
        OSError: The image can't be decoded, or its values are out of range (eight_bits); names the file.
    """
    with _naming(getattr(image, "filename", "")):
        return eight_bits(image).convert("RGB")


def read_image(path: str, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """Read an image file and transform it.

    Raises:
        ValueError: The file is missing or broken; names the file.
    """
    try:
        return transform(to_rgb(open_image(path)))
    except UnidentifiedImageError:
        raise ValueError(f"{path}: no image") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}" if error.strerror else str(error)) from None


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits to 0 to 255, because Pillow would clip all values above 255.

    Integers of any width are taken as 16 bits, as Pillow reads PNG and PGM. Floats are taken as 0 to 1 if none is above
    1, otherwise as 0 to 255.

    Raises:
        ValueError: Values are outside of this range.
    """
    if image.mode == "F":
        values = np.asarray(image)
        largest = 255 if values.max() > 1 else 1
    elif image.mode.startswith("I"):
        values, largest = np.asarray(image), 65535
    else:
        return image
    if not (values.min() >= 0 and values.max() <= largest):
        raise ValueError(f"grey values from {values.min():g} to {values.max():g}, where 0 to {largest} were expected")
    return Image.fromarray(np.rint(values * (255 / largest)).astype(np.uint8))


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn every exception of a decoder, which may be nearly any, into an OSError that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and path and str(path) in str(error):
            raise
        raise OSError(f"{path}: broken image ({reason(error)})") from error
