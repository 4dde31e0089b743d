"""Build data sets by name.

`build_dataset` and `build_transform` have the signatures of DeiT's. A data set gives pairs of a float image [C, H, W]
and an int label; if it can't be read, the error is a ValueError or FileNotFoundError of one line.
"""

import difflib
import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image
from timm.data import create_dataset
from timm.data.dataset_factory import _search_split
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
from torchvision.datasets.folder import find_classes
from torchvision.transforms import Compose

from training.data import array_pickle
from training.data.classes import class_names, follow_classes
from training.data.decoding import open_image, to_rgb
from training.data.image_folder import LinkedImageFolder
from training.data.transforms import build_transform
from training.settings.images import DataSettings
from training.settings.settings import Settings
from training.words import counted, reason

TIMM_PREFIXES = ("torch", "wds", "tfds")


def build_dataset(
    is_train: bool, settings: Settings, classes: list[str] | None = None, *, augment: bool = True
) -> tuple[Dataset, int]:
    """Build the training or the validation split of `settings.data_set`, transforms included.

    Args:
        is_train: True for the training split, False for the validation split.
        settings: The run's settings, with `settings.input_size` set.
        classes: Names of the model's classes, if they are known. A split that names its classes then has labels in
            this order, even if it lacks some of them.
        augment: False to transform training images as validation images.

    Returns:
        The data set and the number of classes (`settings.nb_classes` if that is given).

    Raises:
        ValueError: The name is unknown, a flag doesn't fit, or the data are not in the expected format.
        FileNotFoundError: The data are missing; the message says which files, where they should be and how to get them.
    """
    check(settings)
    transform = build_transform(is_train and augment, settings)
    dataset = BUILDERS.get(settings.data_set.upper(), _timm)(is_train, settings)
    dataset.transform = Compose([to_rgb, transform])
    if classes:
        try:
            follow_classes(dataset, classes)
        except ValueError as error:
            split = "training" if is_train else "validation"
            raise ValueError(f"--data-path {settings.data_path}: the {split} images have {error}") from None
    return dataset, _num_classes(dataset, settings, classes)


def check(settings: DataSettings) -> None:
    """Check that the name is known and that a path is given if one is needed, without reading any file.

    Raises:
        ValueError: The name is unknown or the path is missing; names the flag, and the names nearest to an unknown one.
    """
    name = settings.data_set
    prefix, slash, _ = name.lower().partition("/")
    if slash and prefix in ("hfds", "hfids"):
        raise ValueError(
            f"--data-set {name}: its package is called 'datasets', as is this project's module, and cannot be imported "
            "beside it; use FOLDER or a torch/, wds/ or tfds/ name"
        )
    if name.upper() not in BUILDERS and not (slash and prefix in TIMM_PREFIXES):
        near = difflib.get_close_matches(name.upper(), BUILDERS, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        known = ", ".join([*BUILDERS, *(f"{prefix}/..." for prefix in TIMM_PREFIXES)])
        raise ValueError(f"--data-set {name}: no such data set; {hint}known are {known}")
    if not settings.data_path and name.upper() not in ("DIGITS", "FMNIST"):
        raise ValueError(f"--data-set {name} needs --data-path")


def check_indexed(settings: DataSettings) -> None:
    """Raise ValueError if the data set is a stream, which can't give single images by index."""
    if settings.data_set.lower().startswith(("wds/", "tfds/")):
        raise ValueError(f"--data-set {settings.data_set}: is a stream, of which no single images can be asked for")


class LabelledImages(Dataset):
    """Hold images with labels.

    Args:
        images: Paths for `open_image`, or uint8 arrays [H, W] or [H, W, 3] for `Image.fromarray`.
        labels: One int for each image.
        classes: Names or numbers of the classes, in the order of the labels.
        open_image: Function that turns an entry of images into a Pillow image.
    """

    def __init__(
        self,
        images: Sequence[str] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        classes: Sequence[str] | range,
        open_image: Callable[[Any], Image.Image],
    ) -> None:
        self.images = images
        self.labels = labels
        self.classes = classes
        self.open_image = open_image
        self.transform = to_rgb
        self.target_transform: Callable[[int], int] = int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, int]:
        return self.transform(self.open_image(self.images[index])), self.target_transform(int(self.labels[index]))


def _in_memory(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str] | range, source: str | Path
) -> LabelledImages:
    """Build a data set of arrays; raise ValueError unless there is a label in range for every image."""
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"{source}: {counted(len(images), 'image')} and {counted(len(labels), 'label')}")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"{source}: labels from {labels.min()} to {labels.max()} for {counted(len(classes), 'class', 'classes')}"
        )
    return LabelledImages(images, labels, classes, Image.fromarray)


def _num_classes(dataset: Dataset, settings: DataSettings, classes: list[str] | None) -> int:
    reader = getattr(dataset, "reader", None)
    own = len(getattr(dataset, "classes", None) or getattr(reader, "class_to_idx", None) or ())
    known = len(classes) if classes and class_names(dataset) else own
    if not (known or settings.nb_classes):
        raise ValueError(f"--data-set {settings.data_set} does not say how many classes it has: give --nb-classes")
    if settings.nb_classes and settings.nb_classes < known:
        there = f"--data-set {settings.data_set} has {counted(known, 'class', 'classes')}"
        raise ValueError(f"--nb-classes {settings.nb_classes}: {there}")
    return settings.nb_classes or known


def _find(
    settings: DataSettings, names: list[str], folders: list[Path], advice: str, source: type[Dataset] | None = None
) -> list[Path]:
    """Find the files `names`, plain or gzipped, in the first of `folders` that has them all.

    If none has, and `settings.download` allows it, the torchvision class `source` downloads them into the data path.
    """
    for folder in folders:
        paths = [next(filter(Path.is_file, (folder / name, folder / f"{name}.gz")), None) for name in names]
        if all(paths):
            return paths
    missing = f"--data-set {settings.data_set}: no {' and '.join(names)} in {' or '.join(map(str, folders))}"
    if not (source and settings.download and settings.data_path):
        raise FileNotFoundError(f"{missing}; {advice}")
    try:
        source(settings.data_path, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{missing}; download failed ({reason(error)}); {advice}") from error
    return _find(settings, names, folders, advice)


def _read(path: Path) -> bytes:
    """Return the bytes of a plain or gzipped file."""
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip file ({error})") from error


def _digits(is_train: bool, settings: Settings) -> LabelledImages:
    """Build scikit-learn's 1,797 digits of 8x8 pixels; the same stratified fifth is always the validation set."""
    from sklearn.datasets import load_digits  # slow to import, and nothing else here needs it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, val = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
    split = train if is_train else val
    return _in_memory(images[split], digits.target[split], range(10), "DIGITS")


def _cifar(is_train: bool, settings: DataSettings, source: type[CIFAR10], num_classes: int) -> LabelledImages:
    root = Path(settings.data_path)
    names = [name for name, _ in (source.train_list if is_train else source.test_list)]
    advice = f"--download gets it, or unpack {source.url} into --data-path"
    paths = _find(settings, names, [root / source.base_folder, root], advice, source)
    batches = [_read_cifar(path) for path in paths]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    classes = _read_cifar_names(paths[0].with_name(source.meta["filename"]), source.meta["key"], num_classes)
    return _in_memory(images, labels, classes, paths[0].parent)


def _read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 32, 32, 3] and labels [N] of one batch in CIFAR's Python format."""
    try:
        batch = array_pickle.load(_read(path))
        labels = batch["fine_labels"] if "fine_labels" in batch else batch["labels"]
        are_listed = isinstance(labels, list) and all(isinstance(label, int) for label in labels)
        labels = np.array(labels) if are_listed else array_pickle.as_array(labels)
        images = array_pickle.as_array(batch["data"]).astype(np.uint8, casting="safe")
        return rearrange(images, "n (c h w) -> n h w c", c=3, h=32, w=32), labels.astype(np.int64, casting="safe")
    except Exception as error:  # a broken pickle raises nearly everything
        raise ValueError(f"{path}: not a batch of CIFAR in Python's format ({reason(error)})") from error


def _read_cifar_names(path: Path, key: str, count: int) -> list[str] | range:
    """Return the names of the classes, or numbers if the file of names is missing."""
    if not path.is_file():
        return range(count)
    try:
        names = array_pickle.load(_read(path))[key]
    except Exception as error:
        raise ValueError(f"{path}: not CIFAR's names of classes ({reason(error)})") from error
    if not (isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{path}: not {count} names of classes")
    return names


def _fashion_mnist(is_train: bool, settings: DataSettings) -> LabelledImages:
    root = Path(settings.data_path) if settings.data_path else None
    folders = [root, root / "FashionMNIST" / "raw"] if root else debian_fmnist()
    names = [f"{'train' if is_train else 't10k'}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    advice = "apt-get install dataset-fashion-mnist, or give --data-path and --download"
    images, labels = _find(settings, names, folders, advice, FashionMNIST)
    return _in_memory(_read_idx(images, 3), _read_idx(labels, 1), FashionMNIST.classes, images.parent)


def debian_fmnist() -> list[Path]:
    """Return the folders in which Debian's package dataset-fashion-mnist may be: one under each system data folder."""
    shares = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"  # by the XDG Base Directory Specification
    return [Path(share) / "datasets" / "fashion-mnist" for share in shares.split(":")]


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Return the uint8 array in an idx file of `ndim` axes: bytes 0, 0, type, ndim; sizes, 4 bytes each; data."""
    data = _read(path)
    header = 4 + 4 * ndim
    if data[:4] != bytes((0, 0, 0x08, ndim)) or len(data) < header:
        raise ValueError(f"{path}: not an idx file of unsigned bytes with {ndim} axes")
    shape = np.frombuffer(data, ">u4", ndim, offset=4).tolist()
    if len(data) - header != math.prod(shape):
        raise ValueError(f"{path}: {len(data) - header} bytes of data where {shape} are announced")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _image_folder(is_train: bool, settings: DataSettings) -> LabelledImages:
    """Build a split from train/ or val/, which hold the same folders of images, one for each class."""
    root = Path(settings.data_path)
    split, other = (root / "train", root / "val")[:: 1 if is_train else -1]
    if not split.is_dir():
        raise FileNotFoundError(
            f"--data-set {settings.data_set}: no folder {split}; --data-path must hold train/ and val/"
        )
    try:
        folder = LinkedImageFolder(split)
        if other.is_dir() and (odd := set(folder.classes) ^ set(find_classes(other)[0])):
            raise ValueError(f"--data-path {root}: classes in only one of train/ and val/: {', '.join(sorted(odd))}")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--data-path {root}: {error}") from error
    return LabelledImages([path for path, _ in folder.samples], folder.targets, folder.classes, open_image)


def _inaturalist(is_train: bool, settings: DataSettings, year: int) -> LabelledImages:
    """Build a split of iNaturalist's json files; as in DeiT, classes are numbered as they first appear in training."""
    root = Path(settings.data_path)
    names = ["categories.json", f"train{year}.json", f"val{year}.json"]
    paths = _find(settings, names, [root], "see https://github.com/visipedia/inat_comp")
    try:
        categories, train, val = (json.loads(_read(path)) for path in paths)
        taxa = {entry.get("id", i): entry[settings.inat_category] for i, entry in enumerate(categories)}
        classes = list(dict.fromkeys(taxa[int(entry["category_id"])] for entry in train["annotations"]))
        index = {name: i for i, name in enumerate(classes)}
        files = [image["file_name"] for image in (train if is_train else val)["images"]]
        labels = [index[taxa[int(file.split("/")[2])]] for file in files]
        if not (root / files[0]).exists():  # DeiT's layout has no folder between the split's and the category's
            parts = (file.split("/") for file in files)
            files = [f"{split}/{category}/{name}" for split, _, category, name in parts]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"{root}: not iNaturalist {year} with --inat-category {settings.inat_category} ({error!r})"
        ) from error
    return LabelledImages([f"{root}/{file}" for file in files], labels, classes, open_image)


def _timm(is_train: bool, settings: Settings) -> Dataset:
    """Build timm's data set of a prefixed name; wds and tfds are streams, which shuffle and split between processes."""
    split, stream = "train" if is_train else "validation", {}
    if not settings.data_set.lower().startswith("torch/"):
        stream = {
            "seed": settings.seed,
            "batch_size": settings.batch_size * (settings.grad_accum_steps if is_train else 1),
        }
    try:
        if settings.data_set.lower() in ("torch/image_folder", "torch/folder"):
            dataset = LinkedImageFolder(_search_split(settings.data_path, split))
        else:
            dataset = create_dataset(
                settings.data_set,
                root=settings.data_path,
                split=split,
                is_training=is_train,
                download=settings.download,
                **stream,
            )
    except Exception as error:  # each reader has its own ways to fail
        why = reason(error).replace("download=True", "--download")  # torchvision's message names its argument
        raise ValueError(f"--data-set {settings.data_set} --data-path {settings.data_path}: {why}") from error
    if hasattr(dataset, "loader"):
        dataset.loader = open_image  # by path, so that a broken file can be named
    return dataset


BUILDERS = {
    "DIGITS": _digits,
    **dict.fromkeys(("CIFAR", "CIFAR100"), partial(_cifar, source=CIFAR100, num_classes=100)),
    "CIFAR10": partial(_cifar, source=CIFAR10, num_classes=10),
    "FMNIST": _fashion_mnist,
    "IMNET": _image_folder,
    "FOLDER": _image_folder,
    "INAT": partial(_inaturalist, year=2018),
    "INAT19": partial(_inaturalist, year=2019),
}
