"""Who runs the cells of a comparison, where, and what becomes of those that fail."""
