"""Fine-tune Hugging Face language models with quantum-generated parameters."""
