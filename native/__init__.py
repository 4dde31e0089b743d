"""Compile, keep and load a package's operations in C++, whatever they are, and say whether Triton can run."""

from native.build import cache_directory, load_library

__all__ = ["cache_directory", "load_library"]
