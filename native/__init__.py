"""What rooms with operations in C++ share: compiling them, keeping the build, loading it. Knows no operation."""

from native.build import load_library

__all__ = ["load_library"]
