"""A cell: one training of a comparison, and all that is measured of it."""
