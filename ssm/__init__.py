"""Compute Vision Mamba's state space: a causal convolution, a selective scan, and the mixer made of them.

`python -m ssm` says which implementations of the two operations run on this machine, and what the rest would need.
"""

from ssm.backends import BACKENDS, causal_conv1d, pick, selective_scan, unavailable, use_backend
from ssm.mixer import BiMamba, SelectiveSSM
from ssm.norm import add_and_normalize

__all__ = [
    "BACKENDS",
    "BiMamba",
    "SelectiveSSM",
    "add_and_normalize",
    "causal_conv1d",
    "pick",
    "selective_scan",
    "unavailable",
    "use_backend",
]
