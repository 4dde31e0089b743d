"""Hold what training changes, and keep it in files between runs."""
