"""The harness around the engine, in rooms: settings, runtime, data, step, state, records and build."""
