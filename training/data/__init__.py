"""Bring images to the model: decoding, classes, augmentation, order and loaders."""
