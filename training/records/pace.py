"""How long epochs take, and how long those to come will."""

from statistics import median

PARTS = ("train_seconds", "test_seconds", "test_ema_seconds")  # of an epoch, in its record


def seconds(record: dict) -> float:
    """What an epoch took, by its record: to train, and to evaluate the weights and, if one is kept, their average."""
    return sum(record.get(part, 0.0) for part in PARTS)


def seconds_left(records: list[dict], epochs: int) -> float:
    """What so many epochs will take, if each is as long as the median of these."""
    return epochs * median(seconds(record) for record in records)
