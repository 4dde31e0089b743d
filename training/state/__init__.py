"""What training changes, and the files that hold it between two runs."""
