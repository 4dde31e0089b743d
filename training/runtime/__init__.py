"""What a step runs on: processes and devices, memory, random generators, signals, and the bar of its progress."""
