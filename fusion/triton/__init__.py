"""Match and merge in Triton on GPUs, as fusion.matching and fusion.merging define them: six kernels a layer."""

from functools import cache

from native import kernels


@cache
def unavailable() -> str | None:
    """Return in one line why this can't run here; if it can, register its operators and return None."""
    reason = kernels.unavailable()
    if reason is None:
        from fusion.triton import operators  # noqa: F401, importing registers them
    return reason
