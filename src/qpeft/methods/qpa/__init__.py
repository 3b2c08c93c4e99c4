"""QPA (arXiv 2410.09846): a circuit and a mapping network generate an adapter chunk by chunk."""
