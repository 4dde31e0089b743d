"""Tell how long epochs took, and estimate the time left."""

from statistics import median

TESTS = ("test_seconds", "test_ema_seconds")  # columns of an evaluated epoch's record


def seconds(record: dict) -> float:
    """Return an epoch's seconds: for training, and for evaluating the weights and, if one is kept, their average."""
    return record.get("train_seconds", 0.0) + evaluation_seconds(record)


def evaluation_seconds(record: dict) -> float:
    """Return the seconds of an epoch's evaluation, 0 if it had none."""
    return sum(record.get(part, 0.0) for part in TESTS)


def seconds_left(records: list[dict], epochs: int, evaluations: int) -> float:
    """Estimate the seconds for a number of epochs, of which so many are evaluated, from the medians of the records."""
    tests = [evaluation_seconds(record) for record in records if evaluation_seconds(record)]
    training = median(record["train_seconds"] for record in records)
    return epochs * training + evaluations * (median(tests) if tests else 0.0)
