"""A user's script with transformers.Trainer, for torchrun or one process alone."""

import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import METHODS, adapted, check_refused, leave_together, rows, trained
from transformers import Trainer, TrainingArguments

GLOBAL_BATCH = 8
ACCUMULATION = 2


def trainer_of(model, out, n_processes, **settings):
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=GLOBAL_BATCH // ACCUMULATION // n_processes,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=4,
        learning_rate=0.02,
        optim="sgd",  # Adam would blow up the rounding of gradients near 0
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        **settings,
    )
    return Trainer(model, arguments, train_dataset=rows(32))


def train(method, out, n_processes):
    trainer = trainer_of(adapted(method), out, n_processes)
    trainer.train()
    trainer.save_model(str(Path(out) / method))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {**{name: p.detach() for name, p in trained(trainer.model).items()}, "losses": torch.tensor(losses)}


def check_reentrant_is_refused(method, out, n_processes):
    # with unused parameters looked for, as Trainer does by default, DDP itself refuses it
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    options["ddp_find_unused_parameters"] = False
    trainer = trainer_of(adapted(method), out, n_processes, **options)
    check_refused(trainer.train, RuntimeError, "use_reentrant")


def main(out):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for method in METHODS:
        found = train(method, out, n_processes=2)
        rank = torch.distributed.get_rank()
        save_file(found, Path(out) / f"{method}.{rank}.safetensors")
    check_reentrant_is_refused("qpa", out, n_processes=2)
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1])
