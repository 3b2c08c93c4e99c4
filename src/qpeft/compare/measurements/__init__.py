"""What is measured of a training beside its loss: convergence, capacity, cost, generated texts."""
