"""`qpeft_lab.training.train` with every method: adapters have the score of the run, a killed run
resumes exactly.
"""

import copy
import math

import pytest
from peft import PeftModel
from runs import Killed, Recorder, assert_same_result, kill_at, weights
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.errors import CheckpointError
from qpeft.methods import Trains, get, hosts, keys
from qpeft_lab import RunSettings, train
from qpeft_lab.data.text import load_blocks
from qpeft_lab.training.methods import build_configs
from qpeft_lab.training.score import evaluate_language_model

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Unsupported layer type:UserWarning"
    ),  # PEFT's warning about LayerNorm
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:lora with eva initialization used:UserWarning"),
    pytest.mark.filterwarnings("ignore:Specified to not (load|save):UserWarning"),
]
STEPS = 7
HASHES = 256  # bytes of fingerprints in a saved adapter, 32 for a map, which a plan does not count
GENERATOR = {"chunk_size": 32, "hidden": (6,), "n_layers": 2}
SIZES = {
    "qpa": {"r": 4},
    "quantum_peft": {"r": 4},
    "sora": {"r": 4, "shrink_budget": 0.3},
    "bottleneck": {"bottleneck_size": 8},
    "prefix": {"num_virtual_tokens": 4},
    "prompt": {"num_virtual_tokens": 4},
    "fourierft": {"n_frequency": 50},
    "uni_lora": {"theta_d_length": 64},
}
NOT_ON_GPT2 = {"loha", "lokr", "oft", "boft", "hra", "road"}  # which do not adapt Conv1D
NOT_ON_GPT2 |= {"head"}  # a language model has no new head


def run(method, **settings):
    return {"method": method, "method_settings": {**SIZES.get(method, {}), **settings}}


def over(host):
    return {"method": "qpa", "host": host, "method_settings": {**SIZES.get(host, {}), **GENERATOR}}


RUNS = {
    **{key: run(key) for key in keys() if key not in NOT_ON_GPT2},
    **{f"qpa over {host}": over(host) for host in sorted({*hosts()} - NOT_ON_GPT2)},
    "qpa, 2 generators": run("qpa", n_generators=2),
    "quantum_peft, 4 bits": run("quantum_peft", bits=4),
    "quantum_peft in shared frames": run(
        "quantum_peft", frame="gradient", frame_rank=8, share="type"
    ),
    "quantum_peft in frames, 3 bits": run("quantum_peft", frame="gradient", frame_rank=8, bits=3),
    "quantum_peft, lie": run("quantum_peft", family="lie"),
    "quantum_peft in frames of the weights": run("quantum_peft", frame="weights", family="core"),
    "lora from the gradient": run("lora", r=1, init_lora_weights="lora_ga"),
    "lora from activations": run("lora", r=2, init_lora_weights="eva", eva_config={"rho": 1.0}),
    "qaa, qchft": run("qaa", ansatz="mps", readout="last_r", n_read=3, n_layers=2),
    # the projections are drawn again from the config of the adapter
    "vera, drawn again": run("vera", save_projection=False),
    "tiny_lora, drawn again": run("tiny_lora", save_projection=False),
    "uni_lora, drawn again": run("uni_lora", save_indices=False),
}
FAST = {"qpa", "quantum_peft", "qaa", "sora", "bottleneck", "lora", "full", "trainable_tokens"}
FAST |= {"qpa over prefix", "qpa over bottleneck"}
FAST |= {"lora from the gradient", "tiny_lora, drawn again"}


def marked(fast):
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.long]) for name in RUNS]


@pytest.fixture
def settings(tiny_model, text_file, tmp_path):
    """Four blocks a step in two halves, so that epochs end in the middle of the run; dropout is on."""

    def make(name, out="run", **changes):
        common = {
            "steps": STEPS,
            "lr": 5e-3,
            "seq_len": 32,
            "batch_size": 2,
            "gradient_accumulation_steps": 2,
        }
        often = {"save_every": 2, "eval_every": 3, "eval_blocks": 8}
        paths = {"model": str(tiny_model), "data": str(text_file), "out": str(tmp_path / out)}
        return RunSettings(**{**paths, **common, **often, **RUNS[name], **changes})

    return make


@pytest.mark.parametrize("name", marked(FAST))
def test_saved_and_exported_adapters_have_the_score_of_the_run(settings, tokenizer, name):
    asked = settings(name, steps=3, save_every=None)
    result = train(asked)
    assert math.isfinite(result.after.loss)
    assert result.after.loss != result.before.loss

    base = AutoModelForCausalLM.from_pretrained(asked.model)
    blocks = load_blocks(asked, asked.seq_len, tokenizer)[1]
    models = {}
    if get(asked.method).trains is Trains.ADAPTER:
        models["adapter"] = qpeft.load(copy.deepcopy(base), result.adapter)
    if result.has_stock_form:
        is_model = get(asked.method).trains is Trains.MODEL
        assert result.adapter.exists() != is_model
        models["exported"] = (
            AutoModelForCausalLM.from_pretrained(result.exported)
            if is_model
            else PeftModel.from_pretrained(base, result.exported)
        )
    else:
        assert result.exported_bytes == 0
        assert not result.exported.exists()
    if get(asked.method).trains is Trains.ADAPTER:
        saved = weights(result.adapter if result.adapter.exists() else result.exported)
        planned = qpeft.plan(asked.model, *build_configs(asked)).stored_bytes
        assert 0 <= sum(tensor.nbytes for tensor in saved.values()) - planned <= HASHES
    for model in models.values():
        found = evaluate_language_model(model.eval(), blocks, asked.batch_size)
        assert found.loss == pytest.approx(result.after.loss, abs=1e-5)


def test_checkpoint_of_lora_ga_is_no_adapter_of_its_base(settings):
    asked = settings("lora from the gradient", steps=3)
    base = AutoModelForCausalLM.from_pretrained(asked.model)
    checkpoint = train(asked).out / "checkpoints" / "checkpoint-2"
    with pytest.raises(CheckpointError, match="LoRA-GA in training"):
        qpeft.load(base, checkpoint)


@pytest.mark.parametrize("name", marked({"sora", "quantum_peft in frames, 3 bits"}))
def test_run_that_was_killed_twice_resumes_to_the_same_bits(settings, name):
    unbroken = train(settings(name, "unbroken"))
    done = 0  # steps in the last checkpoint
    for killed_at in (2, 5):
        progress = kill_at(killed_at)
        with pytest.raises(Killed):
            train(settings(name), progress)
        assert ("start", STEPS, done) in progress.events
        done = killed_at - 1 - (killed_at - 1) % 2
    progress = Recorder()
    resumed = train(settings(name), progress)

    assert ("start", STEPS, done) in progress.events
    assert_same_result(resumed.out, unbroken.out)

    if name.startswith("quantum_peft"):  # not the float32 values of the checkpoints in between
        (stored,) = (
            tensor for key, tensor in weights(resumed.adapter).items() if key.endswith(".values")
        )
        assert (stored.nbytes < 4 * resumed.trainable) == ("bits" in RUNS[name]["method_settings"])
