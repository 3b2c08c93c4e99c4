"""A training run: prepare, fit in a run folder that can be interrupted and resumed, score, publish,
generate.
"""
