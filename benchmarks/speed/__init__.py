"""The parts of `bench.py`: one module per group of rows, and `measure`, `machine`, `peers` and `table`."""
