"""A generator for a stock adapter that is already on the model."""
