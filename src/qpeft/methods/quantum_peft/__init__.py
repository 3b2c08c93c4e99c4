"""Quantum-PEFT (arXiv 2503.05431): circuits generate the orthogonal factors of low-rank updates."""

from qpeft.methods.method import Method

METHOD = Method(
    key="quantum_peft",
    title="Quantum-PEFT (ICLR 2025, arXiv 2503.05431)",
    config="qpeft.methods.quantum_peft.config:QuantumPeftConfig",
    tuner="qpeft.methods.quantum_peft.config:QuantumPeftModel",
    kind="quantum",
    learning_rate=3e-3,
    defaults={"target_modules": "all-linear"},
    options="qpeft.methods.quantum_peft.settings:QuantumPeftGeneratorConfig",
    fit="qpeft.methods.quantum_peft.fit_frames:fit_for",
)
