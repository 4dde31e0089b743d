"""Build the parts of a training from settings: data, model, optimizer, loss."""
