"""Singular values of an update of Quantum-PEFT at random parameters: given by λ, and found by an SVD."""

import figure_style as style
import torch
from matplotlib.figure import Figure
from peft import get_peft_model
from transformers import AutoModelForCausalLM

import qpeft
import qpeft.demo

S, K = 16, 8


def draw() -> Figure:
    base = AutoModelForCausalLM.from_pretrained(qpeft.demo.base_path(), dtype="float32")
    config = qpeft.QuantumPeftConfig(r=K, lora_alpha=S, target_modules=["c_attn"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator))
        model(input_ids=torch.arange(4)[None])  # the adapter's tensors follow
        named = (
            layer.lora_B["default"].weight.norm(dim=0).sort(descending=True).values
        )  # s |lambda|, since U has unit columns
        found = torch.linalg.svdvals(layer.get_delta_weight("default"))[: K + 2]
    plot = style.axes(200, "singular values of the update, in descending order", "size")
    plot.plot(range(1, K + 3), found, "o", color=style.QUANTUM, fillstyle="none", markersize=10, label="of B A, by SVD")
    plot.plot(range(1, K + 1), named, "o", color=style.INK, markersize=3, label="s |λ|, sorted")
    plot.legend()
    return plot.figure
