"""Measurements of a training run in addition to its loss: convergence, capacity, cost, generated texts."""
