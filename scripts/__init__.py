"""Programs and shell scripts that people run: set-up, tables, evaluations, searches, benchmarks."""
