"""Declare what a user can choose, one frozen dataclass per group of flags, and read it from command lines and files."""
