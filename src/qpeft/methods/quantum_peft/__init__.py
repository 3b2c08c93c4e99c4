"""Quantum-PEFT (arXiv 2503.05431): circuits generate the orthogonal factors of low-rank updates."""

from qpeft.methods.method import Method

METHOD = Method(
    key="quantum_peft",
    title="Quantum-PEFT (ICLR 2025, arXiv 2503.05431)",
    config="qpeft.methods.quantum_peft.config:QuantumPeftConfig",
    tuner="qpeft.methods.quantum_peft.model:QuantumPeftModel",
    kind="quantum",
    classical_values={"family": ("lie", "kronecker", "core")},
    learning_rate=3e-3,
    defaults={"target_modules": "all-linear"},
    options="qpeft.methods.quantum_peft.settings:QuantumPeftGeneratorConfig",
    panel="Quantum-PEFT: the generator of U, V and lambda",
    presets=("paper_pauli", "paper_taylor"),
    option_notes={"r": "K in the paper", "lora_alpha": "s in the paper; the update is multiplied by it alone"},
    circuit_role="each makes the columns of one U or V",
    fit="qpeft.methods.quantum_peft.fit_frames:fit_for",
    save_frames="qpeft.methods.quantum_peft.fit_frames:save_frames",
    advice="qpeft.methods.quantum_peft.settings:angles_hardly_move",
    count="qpeft.methods.quantum_peft.plan:count_quantum_peft",
)
