"""Fine-tuning methods: one folder each."""
