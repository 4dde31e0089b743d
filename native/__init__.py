"""What rooms with operations in C++ share: compiling them, keeping the build, loading it. Knows no operation."""

from native.build import cache_directory, load_library

__all__ = ["cache_directory", "load_library"]
