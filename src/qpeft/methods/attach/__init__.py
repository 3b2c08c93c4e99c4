"""A generator over a stock adapter that is on the model already."""
