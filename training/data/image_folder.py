"""Find images in one folder per class, where links may lead anywhere."""

import os
from collections.abc import Callable
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import has_file_allowed_extension


class LinkedImageFolder(ImageFolder):
    """Read images as torchvision's ImageFolder does, but follow links safely.

    ImageFolder would follow a circular link again and again, and count its images each time. Here a class has the
    images of each real folder once, however many links lead to it, and no images from links that lead upwards.
    """

    @staticmethod
    def make_dataset(
        directory: str | Path,
        class_to_idx: dict[str, int],
        extensions: tuple[str, ...] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> list[tuple[str, int]]:
        is_image = is_valid_file or (lambda path: has_file_allowed_extension(path, extensions))
        samples, empty = [], []
        for name, label in sorted(class_to_idx.items()):
            paths = [path for path in files_below(os.path.join(directory, name)) if is_image(path)]
            samples += [(path, label) for path in paths]
            empty += [] if paths else [name]
        if empty and not allow_empty:
            raise FileNotFoundError(
                f"{directory}: no images ({', '.join(extensions or ())}) of the classes {', '.join(empty)}"
            )
        return samples


def files_below(folder: str) -> list[str]:
    """Return the paths of the files in a folder and all folders below, in torchvision's order: by folder, then name."""
    real = Path(folder).absolute().parent.resolve()
    seen = {str(place) for place in (real, *real.parents)}
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        target = os.path.realpath(place)
        if target in seen:
            folders.clear()
            continue
        seen.add(target)
        folders.sort()  # the first of several links to a folder must not depend on the disk
        found.append((place, sorted(files)))
    return [os.path.join(place, file) for place, files in sorted(found) for file in files]
