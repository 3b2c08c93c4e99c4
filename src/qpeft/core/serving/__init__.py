"""Many compact adapters on one base model."""
