"""Where probabilities come from, other than the exact simulator: a function of angles (L, N) -> (D,)."""
