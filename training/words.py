"""Write numbers and errors as they appear in sentences."""

from datetime import timedelta


def counted(count: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun: 1 GPU, 2 GPUs, 1,000 GPUs; `several` is the plural if an s is not enough."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def clock(seconds: float) -> str:
    """Return a time span in words: 0:00:07, 12:30:00, 2 days, 1:00:00."""
    return str(timedelta(seconds=round(seconds)))


def reason(error: Exception) -> str:
    """Return an error's message on one line, its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
