"""Few trained numbers make an adapter's tensors: `forward() -> flat (P,)`, float32, deterministic. Knows no PEFT."""
