"""Match a data set's labels, by the names of their classes, to the order in which a model knows them."""

from torch.utils.data import Dataset


def class_names(dataset: Dataset) -> list[str] | None:
    """Return the names of a data set's classes in the order of its labels; None if they have no names or are unknown.

    Args:
        dataset: A data set of ours, torchvision or timm, as it was built.
    """
    index = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    names = list(getattr(dataset, "classes", None) or sorted(index, key=index.get))
    return names if names and all(isinstance(name, str) for name in names) else None


def follow_classes(dataset: Dataset, classes: list[str]) -> None:
    """Make each label of a data set the index of its class's name in `classes`; without names, labels stay.

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
    """Raise ValueError if a data set lacks some of the classes, naming these and `what` has learned them."""
    own = class_names(dataset)
    lacking = [name for name in classes if own is not None and name not in own]
    if lacking:
        raise ValueError(f"{what}: learned {shortened(lacking)} too, of which there are no training images now")


def shortened(names: list[str], count: int = 5) -> str:
    """Return a list of names as text, shortened to the first `count` and the total if there are more."""
    return ", ".join(names) if len(names) <= count else f"{', '.join(names[:count])}, ... ({len(names)} in all)"
