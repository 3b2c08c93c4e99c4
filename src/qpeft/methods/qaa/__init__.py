"""QAA: features of a circuit that starts in a layer's input."""
