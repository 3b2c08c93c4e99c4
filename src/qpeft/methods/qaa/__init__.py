"""QAA (arXiv 2509.16244): features from a circuit whose initial state is a layer's input."""

from qpeft.methods.method import Method

METHOD = Method(
    key="qaa",
    title="QAA (arXiv 2509.16244)",
    config="qpeft.methods.qaa.config:QAAConfig",  # finds the query and value projections itself
    tuner="qpeft.methods.qaa.model:QAAModel",
    kind="quantum",
    learning_rate=0.02,
    options="qpeft.methods.qaa.settings:QAASettings",
    panel="QAA: features and targets",
    hidden=("seed", "out_slices"),
    circuit_role="each reads the inputs of a module",
    count="qpeft.methods.qaa.plan:count_qaa",
    report_note="The defaults of QAA are our own choice: the paper's settings are not stated in what we could read.",
)
