"""Compute the loss of a training step, update the weights, and sum up the steps of an epoch."""
