"""Quantum-PEFT (arXiv 2503.05431): circuits generate the orthogonal factors of low-rank updates."""
