"""The state space of Vision Mamba: a causal convolution and a selective scan, and the mixer made of them."""

from ssm.mixer import BiMamba, SelectiveSSM
from ssm.reference import causal_conv1d, selective_scan

__all__ = ["BACKEND", "BiMamba", "SelectiveSSM", "causal_conv1d", "selective_scan"]

BACKEND = "reference"
"""The implementation of the two operations that runs; logged with every measurement."""
