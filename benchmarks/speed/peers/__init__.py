"""Other programs that run QPA's circuit, one file for each.

`gradient(ansatz, angles, weights)` gives a function without arguments whose result is the gradient, in the angles, of
the probabilities' sum under `weights`; `forward(ansatz, angles)` one whose result is the probabilities.
"""
