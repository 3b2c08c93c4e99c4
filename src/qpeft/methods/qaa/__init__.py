"""QAA (arXiv 2509.16244): features from a circuit whose initial state is a layer's input."""

from qpeft.methods.method import Method

METHOD = Method(
    key="qaa",
    title="QAA (arXiv 2509.16244)",
    config="qpeft.methods.qaa.model:QAAConfig",  # finds the query and value projections itself
    tuner="qpeft.methods.qaa.model:QAAModel",
    kind="quantum",
    learning_rate=0.02,
    options="qpeft.methods.qaa.settings:QAASettings",
)
