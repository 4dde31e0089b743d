"""Images in one folder a class, where links may lead anywhere."""

import os
from collections.abc import Callable
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import has_file_allowed_extension


class LinkedImageFolder(ImageFolder):
    """torchvision's ImageFolder, which would follow a link in a circle again and again, and count its images each time.

    A class has the images of every real folder once, however many links lead to it, and none of a link upwards.
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
            raise FileNotFoundError(f"no images ({', '.join(extensions or ())}) of the classes {', '.join(empty)}")
        return samples


def files_below(folder: str) -> list[str]:
    """Paths of the files in a folder and in those below it, in torchvision's order: by folder, then by name."""
    real = Path(folder).absolute().parent.resolve()
    seen = {str(place) for place in (real, *real.parents)}
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        target = os.path.realpath(place)
        if target in seen:
            folders.clear()
            continue
        seen.add(target)
        folders.sort()  # which of several links to a folder comes first must not depend on the disk
        found.append((place, sorted(files)))
    return [os.path.join(place, file) for place, files in sorted(found) for file in files]
