"""Settings to the parts of a training: model, optimizer, loss."""
