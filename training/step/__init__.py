"""What one training step minimises, how weights follow, and what the steps of an epoch add up to."""
