"""What a user can choose: one frozen dataclass a group of flags, and how command lines and files become one."""
