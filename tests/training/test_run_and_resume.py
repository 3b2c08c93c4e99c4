import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from runs import Killed, Recorder, assert_same_result, kill_at, losses, weights
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, get_scheduler

from qpeft.errors import CheckpointError, ConfigError, DataError, InputError, TrainingError
from qpeft.training import callbacks, outputs, train
from qpeft.training.checkpoints import last_complete, step_of
from qpeft.training.metrics_log import read_rows
from qpeft.training.run_folder import RunFolder
from qpeft.training.tasks import task_class

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")

STEPS = 7


def test_run_lowers_the_loss_and_writes_a_complete_folder(settings):
    progress = Recorder()
    result = train(settings(steps=30, lr=5e-2), progress)
    assert result.after.loss < result.before.loss - 0.05
    names = {path.name for path in result.out.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoints", "adapter", "exported", "README.md", "result.json"}
    assert progress.events[:3] == ["Reading the data", "Loading the base model", ("start", 30, 0)]
    assert [event[1] for event in progress.events if event[0] == "step"] == list(range(1, 31))
    assert progress.events[-1] == "Writing the adapter"
    json.dumps(result.to_dict(), allow_nan=False)


def test_files_of_a_run_have_the_permissions_of_the_umask(settings):
    before = os.umask(0o027)
    try:
        out = train(settings()).out
    finally:
        os.umask(before)
    found = [out, *out.rglob("*")]
    assert any(path.suffix == ".safetensors" for path in (out / "checkpoints").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in found if path.is_dir()} == {0o750}
    assert {path.stat().st_mode & 0o777 for path in found if path.is_file()} == {0o640}


def test_first_logged_loss_is_that_of_the_model(settings, tiny_model):
    result = train(settings(steps=1, warmup=0, batch_size=100, gradient_accumulation_steps=1, method="full", lr=1e-9))
    rows = read_rows(result.out / "metrics.jsonl")
    assert [sorted(row)[:2] for row in rows] == [
        ["epoch", "eval_bits_per_byte"],
        ["epoch", "grad_norm"],
        ["epoch", "eval_bits_per_byte"],
    ]
    assert rows[1]["loss"] == pytest.approx(rows[0]["eval_loss"], rel=0.05)  # other blocks, and dropout


def test_gradient_frames_are_computed_before_the_first_step(settings):
    progress = Recorder()
    train(settings(method="quantum_peft", method_settings={"r": 2, "frame": "gradient"}, steps=1, lr=1.0), progress)
    expected = ["Reading the data", "Loading the base model", "Computing the gradient's directions", ("start", 1, 0)]
    assert progress.events[:4] == expected


def test_warning_if_angles_hardly_move(settings):
    with pytest.warns(
        UserWarning,
        match=r"angles move at most 0\.025 radians in 1 steps.*raise the learning rate",
    ):
        train(settings(method="quantum_peft", method_settings={"r": 2}, steps=1, lr=1e-3))
    train(settings("frozen", method="quantum_peft", method_settings={"r": 2, "freeze_angles": True}, steps=1, lr=1e-3))


@pytest.mark.parametrize("epochs", [1, 2.3])
def test_run_of_epochs_has_the_steps_of_the_trainer_and_resumes(settings, tiny_model, epochs):
    def length(**changes):
        return settings(steps=None, epochs=epochs, batch_size=3, save_every=1, **changes)

    progress = Recorder()
    unbroken = train(length(out="unbroken"), progress)
    n_blocks = len(task_class("causal-lm")(length()).train)
    same = {"num_train_epochs": epochs, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    quiet = {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(unbroken.out / "trainer"), **same, **quiet)
    block = {name: torch.zeros(4, dtype=torch.long) for name in ("input_ids", "labels")}
    trainer = Trainer(AutoModelForCausalLM.from_pretrained(tiny_model), arguments, train_dataset=[block] * n_blocks)
    trainer.train()
    assert unbroken.steps == trainer.state.max_steps
    assert f"epochs: {epochs:g} of {n_blocks} examples, {unbroken.steps} steps" in progress.events
    with pytest.raises(Killed):
        train(length(), kill_at(unbroken.steps - 1))
    resumed = train(length())
    assert_same_result(resumed.out, unbroken.out)
    assert train(length()).already_finished
    with pytest.raises(CheckpointError, match=f"epochs was {epochs}, now None; steps was None, now {unbroken.steps}"):
        train(settings(steps=unbroken.steps, batch_size=3, save_every=1))


def test_run_of_a_version_with_fewer_settings_resumes(settings):
    unbroken = train(settings("unbroken"))
    with pytest.raises(Killed):
        train(settings(), kill_at(5))
    config = Path(settings().out) / "config.json"
    record = json.loads(config.read_text())
    for name in ("epochs", "lr_schedule", "label_smoothing", "separator", "pad_rows"):
        del record["settings"][name]
    config.write_text(json.dumps(record))
    assert_same_result(train(settings()).out, unbroken.out)


@pytest.mark.parametrize(("name", "of_transformers"), [("cosine", "cosine"), ("constant", "constant_with_warmup")])
def test_learning_rate_follows_the_schedule_of_transformers(settings, name, of_transformers):
    result = train(settings(lr_schedule=name, warmup=0.3, lr=0.01))
    found = [row["learning_rate"] for row in read_rows(result.out / "metrics.jsonl") if "loss" in row]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = get_scheduler(of_transformers, optimizer, num_warmup_steps=3, num_training_steps=STEPS)
    expected = []
    for _ in range(STEPS):
        expected += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(expected)


def test_label_smoothing_changes_the_training_loss_and_no_score(settings):
    plain, smooth = (train(settings(f"{share}", steps=1, label_smoothing=share)) for share in (0.0, 0.5))
    rows = [read_rows(run.out / "metrics.jsonl") for run in (plain, smooth)]
    one, other = (next(row["loss"] for row in found if "loss" in row) for found in rows)
    assert one != pytest.approx(other, rel=1e-4)
    assert plain.before == smooth.before


def test_run_resumes_after_several_kills(settings):
    unbroken = train(settings("unbroken", save_every=1))
    for step in range(1, STEPS + 1):
        with pytest.raises(Killed):
            train(settings(save_every=1), kill_at(step))
    assert_same_result(train(settings(save_every=1)).out, unbroken.out)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (callbacks, "seal"),
        (torch, "save"),
        (outputs, "qpeft"),
        (outputs, "write_text"),
    ],
    ids=["unsealed checkpoint", "half a checkpoint", "no adapter", "no card"],
)
def test_kill_while_saving_a_checkpoint(settings, monkeypatch, module, name):
    unbroken = train(settings("unbroken"))

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module, name, type("Killer", (), {"__call__": kill, "__getattr__": kill})())
        with pytest.raises(Killed):
            train(settings())
    assert not (Path(settings().out) / "result.json").exists()
    assert_same_result(train(settings()).out, unbroken.out)


def test_checkpoint_without_random_state_is_skipped(settings):
    unbroken = train(settings("unbroken"))
    with pytest.raises(Killed):
        train(settings(), kill_at(5))
    (Path(settings().out) / "checkpoints" / "checkpoint-4" / "rng_state.pth").unlink()
    progress = Recorder()
    resumed = train(settings(), progress)
    assert ("start", STEPS, 2) in progress.events
    assert_same_result(resumed.out, unbroken.out)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_run_resumes_after_removal_of_a_damaged_checkpoint(settings, name):
    unbroken = train(settings("unbroken"))
    with pytest.raises(Killed):
        train(settings(), kill_at(5))
    damaged = Path(settings().out) / "checkpoints" / "checkpoint-4"
    (damaged / name).write_bytes((damaged / name).read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"checkpoint-4 cannot be read: .*\. Delete the folder and run the same"):
        train(settings())
    shutil.rmtree(damaged)
    assert_same_result(train(settings()).out, unbroken.out)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "rng_state.pth"])
def test_flipped_bit_in_a_checkpoint_is_found(settings, name):
    with pytest.raises(Killed):
        train(settings(), kill_at(5))
    file = Path(settings().out) / "checkpoints" / "checkpoint-4" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"the SHA-256 of {name} has changed"):
        train(settings())


def test_result_with_a_value_that_is_not_a_number_is_refused(settings):
    file = train(settings(steps=1)).out / "result.json"
    content = file.read_text()
    for name, value in (("trainable", "9"), ("seconds", None), ("nats", "1.5"), ("n_bytes", 2.5)):
        stored = json.loads(content)
        (stored if name in stored else stored["after"])[name] = value
        file.write_text(json.dumps(stored))
        with pytest.raises(CheckpointError, match=f"{name} is {value!r}"):
            train(settings(steps=1))


def test_unfinished_files_of_a_kill_are_removed(settings):
    out = Path(settings().out)
    (out / ".adapter.abcd_123.unfinished").mkdir(parents=True)
    (out / ".adapter.abcd_123.unfinished" / "half").write_text("")
    (out / ".config.json.abcd_123.unfinished").write_text("{")
    (out / ".gitignore").write_text("*")
    train(settings())
    assert [path.name for path in out.glob(".*")] == [".gitignore"]


def test_finished_run_is_not_repeated(settings):
    first = train(settings())
    progress = Recorder()
    again = train(settings(), progress)
    assert again.already_finished
    assert not first.already_finished
    assert progress.events == []
    assert {**again.to_dict(), "already_finished": False} == first.to_dict()


def test_finished_run_is_shown_from_a_folder_that_cannot_be_written(settings, monkeypatch):
    train(settings(steps=1))
    monkeypatch.setattr("os.access", lambda *_: False)  # as for a user without permissions
    assert train(settings(steps=1)).already_finished
    with pytest.raises(ConfigError, match="no permission to write"):
        train(settings(steps=1, out=settings().out + "-other"))


@pytest.mark.parametrize("field", ["model", "data", "out"])
def test_empty_path_is_refused(settings, field):
    with pytest.raises(ConfigError, match=f"{field} is empty"):
        train(replace(settings(), **{field: ""}))


def test_finished_run_is_not_the_result_of_changed_files(settings, text_file, tiny_model, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    asked = settings(model=str(base), steps=1)
    train(asked)
    text, weights_file = text_file.read_text(), base / "model.safetensors"
    text_file.write_text(text.replace("fox", "wolf"))
    with pytest.raises(CheckpointError, match="other files: data was"):
        train(asked)
    text_file.write_text(text)
    tensors = load_file(weights_file)
    save_file({name: t + 1e-3 for name, t in tensors.items()}, weights_file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="other files: base was"):
        train(asked)


def test_finished_run_without_its_data_and_base_shows_its_result(settings, text_file, tiny_model, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    asked = settings(model=str(base), steps=1)
    train(asked)
    shutil.rmtree(base)
    text_file.unlink()
    progress = Recorder()
    assert train(asked, progress).already_finished
    assert [str(path) in " ".join(map(str, progress.events)) for path in (base, text_file)] == [True, True]


def test_interrupt_saves_the_step_and_the_run_resumes(settings):
    import signal

    unbroken = train(settings("unbroken"))
    before = signal.getsignal(signal.SIGINT)
    progress = Recorder(lambda step: signal.raise_signal(signal.SIGINT) if step == 2 else None)
    with pytest.raises(KeyboardInterrupt):
        train(settings(), progress)
    assert signal.getsignal(signal.SIGINT) is before
    assert any("stopping" in event for event in progress.events)
    assert step_of(last_complete(Path(settings().out) / "checkpoints")) == 3
    assert_same_result(train(settings()).out, unbroken.out)


def test_second_interrupt_stops_immediately(settings):
    import signal

    def twice(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    progress = Recorder(twice)
    with pytest.raises(KeyboardInterrupt):
        train(settings(), progress)
    assert ("step", 2) not in progress.events


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, "other settings: lr was 0.001, now 0.5"),
        ({"method_settings": {"r": 2}}, "other settings: r was None, now 2"),
        ({"seed": 1, "steps": 9}, "seed was 0, now 1; steps was 7, now 9"),
    ],
)
def test_another_run_in_the_folder_is_refused(settings, changes, message):
    with pytest.raises(Killed):
        train(settings(), kill_at(1))
    with pytest.raises(CheckpointError) as refused:
        train(settings(**changes))
    assert message in str(refused.value)


def test_changed_data_or_base_is_refused(settings, text_file, tiny_model, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    with pytest.raises(Killed):
        train(settings(model=str(base)), kill_at(1))
    text, tensors = text_file.read_text(), load_file(base / "model.safetensors")
    text_file.write_text(text.replace("fox", "wolf"))
    with pytest.raises(CheckpointError, match="other files: data was"):
        train(settings(model=str(base)))
    text_file.write_text(text)
    save_file({name: t + 1e-3 for name, t in tensors.items()}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="other files: base was"):
        train(settings(model=str(base)))


def test_moved_run_resumes_with_moved_data_and_base(settings, text_file, tiny_model, tmp_path):
    unbroken = train(settings("unbroken"))
    with pytest.raises(Killed):
        train(settings(), kill_at(3))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    base = shutil.copytree(tiny_model, tmp_path / "base")
    copy = shutil.copy(text_file, tmp_path / "copy.txt")
    progress = Recorder()
    result = train(settings("moved", model=str(base), data=os.path.relpath(copy)), progress)
    assert ("start", 7, 2) in progress.events
    assert_same_result(result.out, unbroken.out)
    assert json.loads((result.out / "config.json").read_text())["settings"]["data"] == os.path.relpath(copy)
    assert train(settings("moved")).already_finished
    copy.write_text(copy.read_text().replace("o", "0"))
    with pytest.raises(
        CheckpointError, match=rf"other files: data was sha256 \w{{12}} .*, now sha256 \w{{12}} \({copy}"
    ):
        train(settings("moved", data=str(copy)))


def test_report_to_may_change_on_resume(settings):
    with pytest.raises(Killed):
        train(settings(), kill_at(3))
    result = train(settings(report_to=["tensorboard"]))
    assert list(result.out.rglob("events.out.tfevents.*"))


def test_folders_with_other_files_are_refused(settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and not a run folder"):
        train(settings())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        train(settings("file"))


@pytest.mark.parametrize("out", ["file/run", "file/deep/run", "x" * 300, "/proc/qpeft/run"])
def test_unusable_run_folder_is_refused_before_loading(settings, tmp_path, out):
    (tmp_path / "file").write_text("")
    progress = Recorder()
    with pytest.raises(ConfigError, match=r"cannot be (a run folder|written): .*; (choose another|give a)"):
        train(settings(out), progress)
    assert progress.events == []


def test_folder_in_use_is_refused(settings):
    fcntl = pytest.importorskip("fcntl")
    out = Path(settings().out)
    out.mkdir()
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process uses the run folder"):
            train(settings())
    assert [path.name for path in out.iterdir()] == [".lock"]
    train(settings(steps=1))
    assert not (out / ".lock").exists()


def test_input_error_during_training_is_a_training_error(settings):
    def refuse(_step):
        raise ConfigError("circuit angles contain NaN")

    with pytest.raises(TrainingError, match="the run cannot continue: circuit angles contain NaN"):
        train(settings(), Recorder(refuse))


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1', '{"format": 1}', '{"format": 1, "settings": {}}', None])
def test_damaged_or_newer_config_is_refused(settings, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"format": 99}' if content is None else content)
    words = r"has format 99, this version of qpeft reads 1" if content is None else r"config\.json is damaged"
    with pytest.raises(CheckpointError, match=words):
        train(settings())


@pytest.mark.parametrize(
    ("name", "value"), [("method", None), ("method", ["qpa"]), ("backend_settings", []), ("backend_settings", None)]
)
def test_config_with_a_setting_of_another_type_is_refused(settings, tmp_path, name, value):
    (tmp_path / "run").mkdir()
    record = {"format": 1, "settings": {**asdict(settings()), name: value}, "identity": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        train(settings())


@pytest.mark.parametrize(("name", "value"), [("data", None), ("data", []), ("seq_len", "x"), ("task", []), ("lr", "")])
def test_settings_of_a_damaged_config_are_refused(settings, tmp_path, name, value):
    record = {"format": 1, "settings": {**asdict(settings()), name: value}, "identity": {}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        RunFolder(tmp_path).settings()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "./no/model"}, InputError, "no model folder ./no/model: "),
        ({"data": "./absent.txt"}, DataError, "no file or folder ./absent.txt"),
        ({"seq_len": 65}, ConfigError, "seq_len=65 is longer than the model's context of 64 tokens"),
        ({"method": "prefix"}, ConfigError, "context of 64 tokens, minus 10 virtual tokens"),
        ({"method_settings": {"rr": 4}}, ConfigError, "unknown field of method lora: 'rr'"),
        ({"method_settings": {"target_modules": ["c_atn"]}}, ConfigError, "nearest names: c_attn"),
        ({"method": "lroa"}, ConfigError, "did you mean 'lora'?"),
        ({"report_to": ["nowhere"]}, ConfigError, "cannot report to 'nowhere': it is unknown"),
        ({"host": "prefix"}, ConfigError, "host prefix is for method qpa; method lora has no host"),
        (
            {"method": "qpa", "host": "prefix", "method_settings": {"lora_alpha": 4}},
            ConfigError,
            "unknown field of host prefix: 'lora_alpha'",
        ),
        ({"method": "qpa", "host": "loha"}, ConfigError, "not supported"),  # the refusal of PEFT
    ],
)
def test_invalid_settings_are_refused_and_nothing_is_written(settings, changes, error, message):
    with pytest.raises(error) as refused:
        train(settings(**changes))
    assert message in str(refused.value)
    assert not Path(settings().out).exists()


def test_folder_without_a_tokenizer_is_refused(settings, tiny_model, tmp_path):
    bare = shutil.copytree(tiny_model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(InputError, match=r"has no tokenizer; put its tokenizer\.json next to the weights"):
        train(settings(model=str(bare)))


def test_tokenizer_of_another_model_is_refused(settings, tiny_model, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    mixed = shutil.copytree(tiny_model, tmp_path / "mixed")
    config = GPT2Config(vocab_size=99, n_positions=64, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(mixed)
    with pytest.raises(InputError, match=r"the tokenizer gives token \d+, but the model has 99 tokens"):
        train(settings(model=str(mixed)))


def test_several_processes_are_refused(settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a run folder belongs to one process"):
        train(settings())


def test_non_finite_loss_stops_the_run(settings, monkeypatch):
    from transformers import GPT2LMHeadModel

    forward, calls = GPT2LMHeadModel.forward, []

    def overflow(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        calls.append(self.training)
        if calls.count(True) > 8:  # two forward passes a step: in the fifth step
            out.loss = out.loss * float("inf")
        return out

    with monkeypatch.context() as patched:
        patched.setattr(GPT2LMHeadModel, "forward", overflow)
        with pytest.raises(TrainingError) as failed:
            train(settings())
    assert "the gradient's norm is nan at step 5. This step was not saved" in str(failed.value)
    assert "lower lr (it is 0.001)" in str(failed.value)
    assert step_of(last_complete(Path(settings().out) / "checkpoints")) == 4
    assert max(row["step"] for row in losses(settings().out)) == 4


def test_gradient_that_is_not_finite_stops_the_run(settings):
    with pytest.raises(TrainingError, match="the gradient's norm is nan at step"):
        train(settings(lr=1e30, warmup=0, max_grad_norm=0, method="full"))


def test_full_disk_keeps_only_complete_checkpoints(settings, monkeypatch):
    save, calls = torch.save, []

    def fill(obj, path, *args, **kwargs):
        calls.append(path)
        if "checkpoint-4" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        return save(obj, path, *args, **kwargs)

    unbroken = train(settings("unbroken"))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fill)
        with pytest.raises(TrainingError, match="is full; the checkpoint of step 2 is intact"):
            train(settings())
    assert [path.name for path in (Path(settings().out) / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert_same_result(train(settings()).out, unbroken.out)


def test_prompts_and_completions_are_trained_on(settings, tmp_path):
    rows = [{"prompt": f"the king {n}", "completion": " sings at night"} for n in range(30)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    result = train(settings(data=str(path), steps=20, lr=1e-2, method="qpa"))
    assert result.after.loss < result.before.loss - 0.1
    assert result.after.n_bytes == len(" sings at night")


def test_gradient_checkpointing_and_bfloat16(settings):
    plain = train(settings("plain", method="qpa", steps=3))
    saved = train(settings("saved", method="qpa", steps=3, gradient_checkpointing=True))
    assert saved.after.loss == pytest.approx(plain.after.loss, rel=1e-5)
    half = train(settings("half", method="qpa", steps=3, dtype="bfloat16"))
    assert half.after.loss == pytest.approx(plain.after.loss, rel=2e-2)
    floats = [tensor for tensor in weights(half.out / "adapter").values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float32}


def test_run_of_an_earlier_version_with_fewer_settings_resumes(settings):
    result = train(settings())
    record = json.loads((result.out / "config.json").read_text())
    for name in ("label_column", "host", "task"):
        del record["settings"][name]
    (result.out / "config.json").write_text(json.dumps(record))
    assert train(settings()).already_finished
    with pytest.raises(CheckpointError, match="task was 'causal-lm', now 'text-classification'"):
        train(settings(task="text-classification"))


def test_result_of_a_language_model_keeps_its_format(settings):
    result = train(settings(steps=2))
    stored = json.loads((result.out / "result.json").read_text())
    assert list(stored) == [
        *("model", "method", "steps", "before", "after", "trainable", "deployed", "stored_bytes", "exported_bytes"),
        *("seconds", "seconds_per_step", "data_sha256"),
    ]
    assert list(stored["after"]) == ["nats", "n_tokens", "n_bytes", "n_unknown", "n_padding"]
    assert (result.trainable_head, result.task) == (0, "causal-lm")
    assert not (result.adapter / "task.json").exists()


def test_run_with_another_tokenizer_or_image_processor_is_refused_unless_0_1_began_it(settings, tmp_path):
    folder, asked = RunFolder(tmp_path), settings()
    folder.claim(asked, {"base": "b", "tokenizer": "t"})
    with pytest.raises(CheckpointError, match=r"other files: tokenizer was sha256 t .*, now sha256 u "):
        folder.claim(asked, {"base": "b", "tokenizer": "u"})
    (tmp_path / "of-0-1").mkdir()
    folder = RunFolder(tmp_path / "of-0-1")
    folder.claim(asked, {"base": "b"})
    folder.claim(asked, {"base": "b", "tokenizer": "u"})
