"""The harness around the engine: options, processes, loaders, losses, memory, logs and checkpoints."""
