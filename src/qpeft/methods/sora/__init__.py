"""SoRA: LoRA that loses ranks while it trains."""
