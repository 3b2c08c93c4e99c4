"""Trainable parameters of each method for one square linear map, by width, according to `qpeft.plan`."""

from matplotlib.figure import Figure
from peft import LoraConfig
from transformers import LlamaConfig

import qpeft
from qpeft.compare.report import canvas

WIDTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
METHODS = (
    ("LoRA r=4", lambda: LoraConfig(r=4, target_modules=["o_proj"]), "s", canvas.CLASSICAL),
    ("LoRA r=1", lambda: LoraConfig(r=1, target_modules=["o_proj"]), "D", canvas.CLASSICAL),
    ("QPA over r=4, half", lambda: qpeft.QPAConfig(r=4, budget=0.5, target_modules=["o_proj"]), "o", canvas.QUANTUM),
    ("Quantum-PEFT r=4", lambda: qpeft.QuantumPeftConfig(r=4, target_modules=["o_proj"]), "^", canvas.QUANTUM),
)


def draw() -> Figure:
    chart = canvas.figure(height=260)
    plot = canvas.axes(chart, right=112)
    for name, config, shape, colour in METHODS:
        trained = [qpeft.plan(base(width), config()).trainable for width in WIDTHS]
        plot.plot(WIDTHS, trained, shape + "-", color=colour, markersize=5)
        plot.annotate(name, (WIDTHS[-1], trained[-1]), (8, 0), textcoords="offset points", va="center", color=colour)
    plot.set(xscale="log", yscale="log")
    plot.set_yticks([1e3, 1e4, 1e5], ["1k", "10k", "100k"])
    canvas.short_ticks(plot)
    canvas.titles(chart, plot, "width of the map (rows and columns)", "trainable parameters, 4 layers")
    return chart


def base(width: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width, intermediate_size=width, num_hidden_layers=4, num_attention_heads=4, vocab_size=64
    )
