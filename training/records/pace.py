"""Tell how long epochs took, and estimate the time left."""

from statistics import median

TESTS = ("test_seconds", "test_ema_seconds")  # columns of an evaluated epoch's record


def seconds(record: dict) -> float:
    """Return an epoch's seconds: for training, and for evaluating the weights and, if one is kept, their average."""
    return record.get("train_seconds", 0.0) + evaluation_seconds(record)


def evaluation_seconds(record: dict) -> float:
    """Return the seconds of an epoch's evaluation, 0 if it had none."""
    return sum(record.get(part, 0.0) for part in TESTS)


def seconds_left(records: list[dict], done: list[float], left: list[float], evaluations: int) -> float:
    """Estimate the seconds of the epochs that are left from the medians of those that are recorded.

    Args:
        records: One or more epochs.
        done: The work of each of them, such as an image's multiply-adds, to which training time is proportional.
        left: The work of each epoch that is left.
        evaluations: How many of these are evaluated.
    """
    tests = [evaluation_seconds(record) for record in records if evaluation_seconds(record)]
    seconds_of_work = median(record["train_seconds"] / work for record, work in zip(records, done, strict=True))
    return sum(left) * seconds_of_work + evaluations * (median(tests) if tests else 0.0)
