"""Tell how long epochs took, and estimate the time left."""

from statistics import median

PARTS = ("train_seconds", "test_seconds", "test_ema_seconds")  # columns of an epoch's record


def seconds(record: dict) -> float:
    """Return an epoch's seconds: for training, and for evaluating the weights and, if one is kept, their average."""
    return sum(record.get(part, 0.0) for part in PARTS)


def seconds_left(records: list[dict], epochs: int) -> float:
    """Estimate the seconds for a number of epochs from the median epoch of the records."""
    return epochs * median(seconds(record) for record in records)
