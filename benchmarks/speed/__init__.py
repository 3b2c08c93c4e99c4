"""The parts of `bench.py`: one module for each group of rows, and what all groups share."""
