"""Data of a run: reading, labels, tokens, images, and the split into training and evaluation data."""
