"""Evidence: one command per part, each printing a table with intervals. Run as `python -m benchmarks.<name>`."""
