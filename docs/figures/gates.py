"""SoRA's gates during training: some are set to zero and stay there, others remain."""

import figure_style as style
import torch
from matplotlib.figure import Figure
from peft import get_peft_model
from transformers import AutoModelForCausalLM

import qpeft
import qpeft.demo

STEPS = 30


def draw() -> Figure:
    base = AutoModelForCausalLM.from_pretrained(qpeft.demo.base_path(), dtype="float32")
    config = qpeft.SoRAConfig(r=8, target_modules=["c_attn"], shrink_budget=0.7, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    optimiser = torch.optim.AdamW(qpeft.param_groups(model, lr=0.05))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / STEPS)
    qpeft.SoRACallback.attach(optimiser, model, steps=STEPS, schedule=schedule)
    gates = next(p for name, p in model.named_parameters() if "gate" in name and p.requires_grad)
    ids, course = torch.arange(64).view(2, 32), [gates.detach().clone()]
    for _ in range(STEPS):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        course.append(gates.detach().clone())
    plot = style.axes(230, "optimiser step", "gates g of one module, rank 8")
    for line in torch.stack(course).T:  # (8, STEPS + 1)
        is_zero = bool(line[-1] == 0)
        colour, dashes = (style.CONTROL, (0, (4, 2))) if is_zero else (style.QUANTUM, "-")
        plot.plot(line, color=colour, linestyle=dashes, label="ends at zero" if is_zero else "remains")
    found = dict(zip(*reversed(plot.get_legend_handles_labels()), strict=True))
    plot.legend(found.values(), found.keys())
    return plot.figure
