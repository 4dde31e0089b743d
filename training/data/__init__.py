"""Images on their way to the model: decoding, classes, augmentation, order and loaders."""
