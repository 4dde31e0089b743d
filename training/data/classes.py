"""Names of classes: what a data set's labels mean, and in which order a model knows them."""

from torch.utils.data import Dataset


def class_names(dataset: Dataset) -> list[str] | None:
    """The names of a data set's classes in the order of its labels; None where classes are numbers alone, or unknown.

    Args:
        dataset: Ours, torchvision's or timm's, as it was built.
    """
    index = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    names = list(getattr(dataset, "classes", None) or sorted(index, key=index.get))
    return names if names and all(isinstance(name, str) for name in names) else None


def follow_classes(dataset: Dataset, classes: list[str]) -> None:
    """Let the labels of a data set mean the places of its classes' names in `classes`; without names they stay.

    Raises:
        ValueError: The data set has classes that are not in `classes`.
    """
    own = class_names(dataset)
    if own is None or own == classes:
        return
    place = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in own if name not in place]
    if unknown:
        raise ValueError(f"classes that the model doesn't know: {shortened(unknown)} (it learns {shortened(classes)})")
    dataset.target_transform = [place[name] for name in own].__getitem__


def check_all_there(classes: list[str], dataset: Dataset, what: str) -> None:
    """Check that a data set lacks none of the classes; ValueError that says of what they are, and which it lacks."""
    own = class_names(dataset)
    lacking = [name for name in classes if own is not None and name not in own]
    if lacking:
        raise ValueError(f"{what}: learned {shortened(lacking)} too, of which there are no training images now")


def shortened(names: list[str], count: int = 5) -> str:
    """A few of the names, and how many there are if these are not all."""
    return ", ".join(names) if len(names) <= count else f"{', '.join(names[:count])}, ... ({len(names)} in all)"
