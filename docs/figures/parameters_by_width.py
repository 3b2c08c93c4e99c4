"""Trainable parameters of each method on one square linear map, against its width, as `qpeft.plan` counts them."""

import figure_style as style
from matplotlib.figure import Figure
from peft import LoraConfig
from transformers import LlamaConfig

import qpeft

WIDTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
METHODS = (
    ("LoRA r=4", lambda: LoraConfig(r=4, target_modules=["o_proj"]), "s", style.CLASSICAL),
    ("LoRA r=1", lambda: LoraConfig(r=1, target_modules=["o_proj"]), "D", style.CLASSICAL),
    ("QPA, r=4, budget 0.5", lambda: qpeft.QPAConfig(r=4, budget=0.5, target_modules=["o_proj"]), "o", style.QUANTUM),
    ("Quantum-PEFT r=4", lambda: qpeft.QuantumPeftConfig(r=4, target_modules=["o_proj"]), "^", style.QUANTUM),
)


def draw() -> Figure:
    plot = style.axes(260, "width of the map (rows and columns)", "trainable parameters, 4 layers")
    for name, config, shape, colour in METHODS:
        trained = [qpeft.plan(base(width), config()).trainable for width in WIDTHS]
        plot.plot(WIDTHS, trained, shape + "-", color=colour, label=name)
    plot.set(xscale="log", yscale="log")
    plot.set_yticks([1e3, 1e4, 1e5], ["1k", "10k", "100k"])
    plot.set_xticks(WIDTHS, [f"{width:,}" for width in WIDTHS])
    plot.minorticks_off()
    plot.legend()
    return plot.figure


def base(width: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width, intermediate_size=width, num_hidden_layers=4, num_attention_heads=4, vocab_size=64
    )
