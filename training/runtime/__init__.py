"""Manage what a step runs on: processes, devices, memory, random generators, signals and the progress bar."""
