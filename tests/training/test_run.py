import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import Recorder, losses, weights
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    get_scheduler,
)

from qpeft.errors import CheckpointError, ConfigError, InputError, TrainingError
from qpeft_lab import train
from qpeft_lab.training import fit
from qpeft_lab.training.checkpoints import last_intact, step_of
from qpeft_lab.training.fit import DivergedError
from qpeft_lab.training.run_folder import read_rows
from qpeft_lab.training.tasks import TASK_CLASSES

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")

STEPS = 7


def test_run_lowers_the_loss_and_writes_a_complete_folder(settings):
    """With the permissions of the umask, and without what a kill left."""
    out, progress, before = Path(settings().out), Recorder(), os.umask(0o027)
    try:
        (out / ".adapter.abcd1234.unfinished").mkdir(parents=True)
        (out / ".adapter.abcd1234.unfinished" / "half").write_text("")
        (out / ".config.json.abcd1234.unfinished").write_text("{")
        (out / ".gitignore").write_text("*")
        result = train(settings(steps=30, lr=5e-2), progress)
    finally:
        os.umask(before)
    assert result.after.loss < result.before.loss - 0.05
    names = {"config.json", "metrics.jsonl", "checkpoints", "adapter", "exported", "result.json"}
    assert {path.name for path in out.iterdir()} == {*names, ".lock", ".gitignore"}
    assert progress.events[:3] == ["Reading the data", "Loading the base model", ("start", 30, 0)]
    assert [event[1] for event in progress.events if event[0] == "step"] == list(range(1, 31))
    assert progress.events[-1] == "Writing the adapter"
    json.dumps(result.to_dict(), allow_nan=False)
    found = [out, *out.rglob("*")]
    assert any(path.suffix == ".safetensors" for path in (out / "checkpoints").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in found if path.is_dir()} == {0o750}
    assert {path.stat().st_mode & 0o777 for path in found if path.is_file()} == {0o640}


def test_run_of_epochs_has_the_steps_of_the_trainer(settings, tiny_model):
    epochs = 2.3

    def length(**changes):
        return settings(steps=None, epochs=epochs, batch_size=3, save_every=1, **changes)

    progress = Recorder()
    unbroken = train(length(out="unbroken"), progress)
    n_blocks = len(TASK_CLASSES["causal-lm"](length()).train)
    same = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
    }
    quiet = {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(unbroken.out / "trainer"), **same, **quiet)
    block = {name: torch.zeros(4, dtype=torch.long) for name in ("input_ids", "labels")}
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        arguments,
        train_dataset=[block] * n_blocks,
    )
    trainer.train()
    assert unbroken.steps == trainer.state.max_steps
    assert f"epochs: {epochs:g} of {n_blocks} examples, {unbroken.steps} steps" in progress.events


@pytest.mark.parametrize(
    ("name", "of_transformers"), [("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
def test_learning_rate_follows_the_schedule_of_transformers(settings, name, of_transformers):
    result = train(settings(lr_schedule=name, warmup=0.3, lr=0.01))
    found = [
        row["learning_rate"] for row in read_rows(result.out / "metrics.jsonl") if "loss" in row
    ]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = get_scheduler(
        of_transformers, optimizer, num_warmup_steps=3, num_training_steps=STEPS
    )
    expected = []
    for _ in range(STEPS):
        expected += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(expected)


def test_label_smoothing_changes_the_training_loss_and_no_score(settings):
    plain, smooth = (
        train(settings(f"{share}", steps=1, label_smoothing=share)) for share in (0.0, 0.5)
    )
    rows = [read_rows(run.out / "metrics.jsonl") for run in (plain, smooth)]
    one, other = (next(row["loss"] for row in found if "loss" in row) for found in rows)
    assert one != pytest.approx(other, rel=1e-4)
    assert plain.before == smooth.before


def test_second_interrupt_stops_immediately(settings):
    def twice(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    progress = Recorder(twice)
    with pytest.raises(KeyboardInterrupt):
        train(settings(), progress)
    assert ("step", 2) not in progress.events


def test_folder_in_use_is_refused_and_a_link_is_followed(settings, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    out = Path(settings().out)
    out.mkdir()
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process uses the run folder"):
            train(settings())
    assert [path.name for path in out.iterdir()] == [".lock"]
    (tmp_path / "link").symlink_to("disk/run")
    train(settings("link", steps=1))
    assert (tmp_path / "disk" / "run" / "result.json").is_file()


def test_run_that_another_process_finished_in_the_meantime_is_not_repeated(settings, monkeypatch):
    def prepare_slowly(*args):
        monkeypatch.setattr(fit, "prepare", prepare)
        assert not train(settings()).already_finished
        return prepare(*args)

    prepare = fit.prepare
    monkeypatch.setattr(fit, "prepare", prepare_slowly)
    assert train(settings()).already_finished


def test_gradient_checkpointing_and_bfloat16(settings):
    plain = train(settings("plain", method="qpa", steps=2))
    for changes, rel in (({"gradient_checkpointing": True}, 1e-5), ({"dtype": "bfloat16"}, 2e-2)):
        other = train(settings(next(iter(changes)), method="qpa", steps=2, **changes))
        assert other.after.loss == pytest.approx(plain.after.loss, rel=rel)
    floats = [
        tensor for tensor in weights(other.out / "adapter").values() if tensor.is_floating_point()
    ]
    assert {tensor.dtype for tensor in floats} == {torch.float32}


BAD = [
    ({"model": ""}, ConfigError, "model"),
    ({"data": ""}, ConfigError, "data"),
    ({"out": ""}, ConfigError, "out"),
    ({"eval_data": ""}, ConfigError, "eval_data"),
    ({"model": "./no/model"}, InputError, "./no/model"),
    ({"model": "no tokenizer"}, InputError, "tokenizer"),
    ({"model": "small vocabulary"}, InputError, "99 tokens"),
    ({"seq_len": 65}, ConfigError, "seq_len=65"),
    ({"method": "prefix"}, ConfigError, "10 virtual tokens"),
    ({"report_to": ["nowhere"]}, ConfigError, "nowhere"),
    ({"method_settings": {"r": "eight"}}, ConfigError, "str"),
    ({"method": "qpa", "method_settings": {"hiden": [6]}}, ConfigError, "hidden"),
    ({"method_settings": {"task_type": "SEQ_CLS"}}, ConfigError, "task_type"),
    ({"method_settings": {"trainable_token_indices": [2**31]}}, ConfigError, "2147483648"),
    ({"method": "full", "method_settings": {"r": 4}}, ConfigError, "r"),
    (
        {"method": "qpa", "host": "prefix", "method_settings": {"lora_alpha": 4}},
        ConfigError,
        "lora_alpha",
    ),
    ({"method": "qpa", "host": "loha"}, ConfigError, "not supported"),  # the refusal of PEFT
]


@pytest.mark.parametrize(("changes", "error", "field"), BAD)
def test_bad_input_is_refused_and_nothing_is_written(
    settings, tiny_model, tmp_path, changes, error, field
):
    if (model := changes.get("model", "")).count(" "):
        folder = shutil.copytree(tiny_model, tmp_path / model)
        for file in folder.glob("tokenizer*") if model == "no tokenizer" else ():
            file.unlink()
        if model == "small vocabulary":
            sizes = {"vocab_size": 99, "n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 1}
            GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(
                folder
            )
        changes = {"model": str(folder)}
    with pytest.raises(error, match=field):
        train(replace(settings(), **changes))
    assert not Path(settings().out).exists()


def test_unusable_folder_is_refused(settings, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    progress = Recorder()
    for out in ("file", "file/run", "other", "x" * 300):
        with pytest.raises(ConfigError):
            train(settings(out), progress)
    assert progress.events == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        train(settings())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *[
            ("config", change)
            for change in ({"identity": 1}, {"settings": {}}, {"method": None}, {"data": []}, "{")
        ],
        *[
            ("result", change)
            for change in (
                {"trainable": "nine"},
                {"seconds": None},
                {"after": {"loss": "low"}},
                "{",
            )
        ],
    ],
)
def test_damaged_file_of_a_run_is_refused(settings, name, change):
    file = train(settings(steps=1)).out / f"{name}.json"
    stored = json.loads(file.read_text())
    if change != "{":
        (stored if {*change} & {*stored} else stored["settings"]).update(change)
    file.write_text(change if change == "{" else json.dumps(stored))
    with pytest.raises(CheckpointError, match=rf"{name}\.json"):
        train(settings(steps=1))


def test_run_stops_at_a_loss_that_is_not_finite(settings, monkeypatch):
    forward, calls = GPT2LMHeadModel.forward, []

    def overflow(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        calls.append(self.training)
        if calls.count(True) > 8:  # two forward passes a step: in the fifth step
            out.loss = out.loss * float("inf")
        return out

    with monkeypatch.context() as patched:
        patched.setattr(GPT2LMHeadModel, "forward", overflow)
        with pytest.raises(DivergedError, match="inf at step 5"):
            train(settings())
    assert step_of(last_intact(Path(settings().out) / "checkpoints")) == 4
    assert max(row["step"] for row in losses(settings().out)) == 4
    with pytest.raises(DivergedError, match="is nan at step"):
        train(settings("gradient", lr=1e30, warmup=0, max_grad_norm=0, method="full"))


def test_input_error_during_training_is_a_training_error(settings):
    def refuse(_step):
        raise ConfigError("circuit angles contain NaN")

    with pytest.raises(TrainingError, match="circuit angles contain NaN"):
        train(settings(), Recorder(refuse))
