"""A frame file: adapters that refer to it equal those with frames inside, are small on the disk,
and refuse others.
"""

import copy
import hashlib
import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from folders import edit_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from tiny_models import llama as tiny_llama
from variants import move, of_family

import qpeft
from qpeft.core import frame_file
from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import read_json
from qpeft.methods.quantum_peft.fit_frames import save_frames

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
SHARED = {
    "r": 3,
    "n_layers": 1,
    "share": "type",
    "frame_rank": 8,
    "task_type": "CAUSAL_LM",
}
EIGHT_BITS = {"bits": 8, "lambda_bits": 4}
TARGETS = ["q_proj", "up_proj", "down_proj"]

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")


def fitted(base, ids, save_to=None, **settings):
    """`base` with new gradient frames, fitted to `ids`."""
    chosen = {**SHARED, "frame": "gradient", "target_modules": TARGETS, **settings}
    config = qpeft.QuantumPeftConfig(**of_family(chosen))
    model = get_peft_model(copy.deepcopy(base), config)
    qpeft.fit_frames(model, [{"input_ids": ids}], save_to=save_to)
    return model


@pytest.fixture
def frames(llama, ids, tmp_path):
    """A frame file of the base model `llama`."""
    fitted(llama, ids, tmp_path / "frames")
    return tmp_path / "frames.safetensors"


def referring(base, frames, **settings):
    config = qpeft.QuantumPeftConfig(**of_family({**SHARED, **settings}), frames=str(frames))
    return move(get_peft_model(copy.deepcopy(base), config))


@pytest.mark.parametrize("to_file", [True, False])
def test_copy_of_an_adapter_has_its_frames_from_the_file(llama, ids, tmp_path, to_file):
    """As TRL's trainers make their reference: a new adapter of the same config, and its parameters."""
    model = move(fitted(llama, ids, tmp_path / "frames" if to_file else None))
    expected = model(ids).logits
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default" in name:
            model.get_parameter(name.replace(".default", ".ref")).data.copy_(parameter.data)
    model.set_adapter("ref")
    if not to_file:
        with pytest.raises(ConfigError, match="call it with save_to=FILE"):
            model(ids)
        return

    assert torch.equal(model(ids).logits, expected)


def sha_of(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        EIGHT_BITS,
        {"family": "lie", "freeze_angles": True},
        {"modules_to_save": ["norm"], "lambda_bits": 8},
    ],
    ids=str,
)
def test_logits_are_equal_with_frames_inside_and_outside(
    llama, ids, frames, adapters, tmp_path, settings
):
    inside = move(fitted(llama, ids, **settings))
    outside = referring(llama, frames, **settings)
    expected = adapters.logits(inside, ids)

    assert not torch.equal(expected, adapters.logits(llama, ids))
    assert torch.equal(adapters.logits(outside, ids), expected)

    qpeft.save(inside, tmp_path / "inside")
    qpeft.save(outside, tmp_path / "outside")
    assert qpeft.export(outside, tmp_path / "exported").max_logit_difference <= 1e-6

    for name in ("inside", "outside"):
        assert torch.equal(
            adapters.logits(qpeft.load(copy.deepcopy(llama), tmp_path / name).eval(), ids), expected
        )


def test_adapter_of_300_parameters_is_below_1_kb(ids, adapters, tmp_path):
    """All files of its folder; the frame file is not one of them."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    base = tiny_llama(
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        **heads,
    )
    fitted(
        base,
        ids,
        tmp_path / "frames",
        frame_rank=32,
        target_modules="all-linear",
    )
    for stored, total, n_bytes in (
        ({"bits": 16, "lambda_bits": 16}, 1000, 574),
        (EIGHT_BITS, 600, 256),
    ):
        adapter = referring(
            base,
            tmp_path / "frames.safetensors",
            frame_rank=32,
            **stored,
        )
        assert adapter.get_nb_trainable_parameters()[0] == 287  # 182 angles and 105 lambda
        planned = qpeft.plan(base, adapter.peft_config["default"]).stored_bytes
        folder = tmp_path / str(total)
        qpeft.save(adapter, folder)
        (tensor,) = load_file(folder / WEIGHTS).values()
        assert planned == tensor.nbytes - 8 <= n_bytes
        assert sum(file.stat().st_size for file in folder.iterdir()) <= total
        loaded = qpeft.load(copy.deepcopy(base), folder).eval()
        assert torch.equal(adapters.logits(loaded, ids), adapters.logits(adapter, ids))


def test_adapter_stores_only_settings_that_differ(llama, frames, tmp_path):
    qpeft.save(referring(llama, frames, r=2, seed=7), tmp_path / "users" / "a")
    assert read_json(tmp_path / "users" / "a" / CONFIG) == {
        "peft_type": "QPEFT_QUANTUM_PEFT",
        "format_version": 2,
        "r": 2,
        "seed": 7,
        "frames": "frames.safetensors",
        "frames_sha256": sha_of(frames),
    }
    assert sorted(path.name for path in (tmp_path / "users" / "a").iterdir()) == [CONFIG, WEIGHTS]

    config = qpeft.load(llama, tmp_path / "users" / "a").peft_config["default"]
    assert config.r == 2
    assert config.seed == 7
    assert config.frame_rank == 8
    assert config.target_modules == set(TARGETS)


def test_frame_file_has_the_same_bytes_again_and_is_not_replaced(llama, ids, frames, tmp_path):
    with pytest.raises(ConfigError, match=r"frames\.safetensors exists"):
        fitted(llama, ids, frames.with_suffix(""))

    fitted(llama, ids, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == frames.read_bytes()
    with pytest.raises(ConfigError, match="not in a file yet"):
        save_frames(referring(llama, frames), tmp_path / "more")

    config = qpeft.QuantumPeftConfig(frame="gradient", target_modules=TARGETS, r=3, frame_rank=8)
    several = get_peft_model(copy.deepcopy(llama), config)
    several.add_adapter("other", config)
    batches = iter([{"input_ids": ids}])

    with pytest.raises(ConfigError, match="for one adapter"):
        qpeft.fit_frames(several, batches, save_to=tmp_path / "more")
    assert next(batches)  # refused before any work

    with torch.device("meta"):  # as a default
        found = frame_file.read_frame_file(frames).tensors
    assert all(torch.equal(found[key], tensor) for key, tensor in load_file(frames).items())


@pytest.mark.parametrize("has_links", [True, False])
def test_frame_file_that_another_process_wrote_meanwhile_is_kept(
    llama, ids, frames, tmp_path, monkeypatch, has_links
):
    other = tmp_path / "other.safetensors"

    def no_links(*_):
        raise PermissionError("no hard links here")

    def write_meanwhile(*given, **options):
        other.write_text("of another process")
        return save(*given, **options)

    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
        fitted(llama, ids, tmp_path / "again")
        assert (tmp_path / "again.safetensors").read_bytes() == frames.read_bytes()
    monkeypatch.setattr(frame_file, "save", write_meanwhile)
    with pytest.raises(ConfigError, match=r"other\.safetensors exists"):
        fitted(llama, ids, other)
    assert other.read_text() == "of another process"
    assert not [*tmp_path.glob(".*")]


def test_missing_or_different_frame_file_is_refused(llama, frames, adapters, ids, tmp_path):
    model = referring(llama, frames)
    folder = tmp_path / "users" / "a"
    sha = sha_of(frames)
    qpeft.save(model, folder)
    fitted(llama, (ids + 1) % 50, other := tmp_path / "other.safetensors")
    moved = frames.rename(tmp_path / "elsewhere.safetensors")
    for loads in (qpeft.load, PeftModel.from_pretrained):
        with pytest.raises(
            CheckpointError, match=rf"frames\.safetensors with SHA-256 {sha}, which is missing"
        ):
            loads(copy.deepcopy(llama), folder)
    for loads, place in ((qpeft.load, folder), (qpeft.AdapterPool, folder.parent)):
        with pytest.raises(CheckpointError, match=f"{sha_of(other)}. is not the one .*{sha}"):
            loads(copy.deepcopy(llama), place, frames=other)
    other.rename(frames)

    with pytest.raises(CheckpointError, match=f"is not the one .*{sha}"):
        qpeft.load(copy.deepcopy(llama), folder)

    for none in (tmp_path / "none.safetensors", tmp_path / ("x" * 300), ""):
        with pytest.raises(ConfigError, match="there is no frame file"):
            qpeft.load(copy.deepcopy(llama), folder, frames=none)
    again = qpeft.load(
        copy.deepcopy(llama),
        folder,
        frames=moved,
        is_trainable=True,
    )
    moved.rename(tmp_path / "moved.safetensors")
    again.save_pretrained(tmp_path / "b")  # without reading the frame file
    saved, stored = (read_json(each / CONFIG) for each in (folder, tmp_path / "b"))

    assert stored == {**saved, "frames": "elsewhere.safetensors"}

    loaded = qpeft.load(
        copy.deepcopy(llama), tmp_path / "b", frames=tmp_path / "moved.safetensors"
    ).eval()
    assert torch.equal(adapters.logits(loaded, ids), adapters.logits(model, ids))


@pytest.mark.parametrize("is_missing", [True, False])
def test_frame_file_for_an_adapter_that_refers_to_none_is_refused(
    llama, ids, frames, tmp_path, is_missing
):
    given = tmp_path / "none.safetensors" if is_missing else frames
    qpeft.save(fitted(llama, ids), tmp_path / "users" / "a")  # with its frames inside
    for loads, place in ((qpeft.load, "users/a"), (qpeft.AdapterPool, "users")):
        with pytest.raises(ConfigError, match="refers to no frame file"):
            loads(copy.deepcopy(llama), tmp_path / place, frames=given)


@pytest.mark.parametrize("factor", [-1, 1.001])
def test_frames_of_another_base_are_refused(llama, gpt2, frames, tmp_path, factor):
    qpeft.save(referring(llama, frames), tmp_path / "a")
    tuned = copy.deepcopy(llama)
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight.mul_(factor)

    with pytest.raises(CheckpointError, match="frames of another base model"):
        referring(tuned, frames)
    with pytest.raises(CheckpointError, match="frames of another base model"):
        qpeft.load(tuned, tmp_path / "a")
    with pytest.raises(CheckpointError, match="another base model"):
        referring(gpt2, frames, target_modules=["c_attn"])

    referring(llama.to(torch.bfloat16), frames)  # another precision of the base


@pytest.mark.parametrize(
    "settings, error, named",
    [
        ({"frame": "random"}, ConfigError, "frames"),
        ({"frame": "sign"}, ConfigError, "has frames of 'gradient'; set frame='gradient'"),
        (
            {"target_modules": ["k_proj"]},
            ConfigError,
            r"0 directions for model.layers.0.self_attn.k_proj",
        ),
        ({"frames_sha256": "0" * 64}, CheckpointError, "is not the one"),
        ({"r": 9}, ConfigError, "r=9 exceeds 8"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_frame_file_raise(llama, frames, settings, error, named):
    with pytest.raises(error, match=named):
        referring(llama, frames, **settings)


@pytest.mark.parametrize("settings", [{}, {"frame": "gradient"}], ids=str)
def test_frame_file_of_another_kind_is_refused(llama, ids, tmp_path, settings):
    fitted(llama, ids, tmp_path / "signs", frame="sign")
    file = tmp_path / "signs.safetensors"
    with pytest.raises(ConfigError, match="has frames of 'sign'; set frame='sign'"):
        referring(llama, file, **settings)

    model = referring(llama, file, frame="sign")
    qpeft.save(model, tmp_path / "adapter")
    loaded = qpeft.load(copy.deepcopy(llama), tmp_path / "adapter", frames=file)
    assert loaded.peft_config["default"].frame == "sign"


@pytest.mark.parametrize("targets", [".*q_proj", ["q_proj"], "all-linear"])
def test_layers_beside_the_targets_of_a_frame_file(llama, ids, adapters, tmp_path, targets):
    """Whatever the file's targets are: PEFT ignores layers beside a pattern and whole names."""
    fitted(llama, ids, tmp_path / "frames", target_modules=targets)
    chosen = referring(llama, tmp_path / "frames.safetensors", layers_to_transform=[1])
    adapted = [name for name, each in chosen.named_modules() if hasattr(each, "lora_A")]

    assert len(adapted) == (7 if targets == "all-linear" else 1)
    assert all(".layers.1." in name for name in adapted)

    expected = adapters.logits(chosen, ids)
    qpeft.save(chosen, tmp_path / "saved")
    loaded = qpeft.load(copy.deepcopy(llama), tmp_path / "saved")
    assert torch.equal(adapters.logits(loaded, ids), expected)

    qpeft.export(chosen, tmp_path / "exported")
    stock = PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / "exported")
    torch.testing.assert_close(adapters.logits(stock, ids), expected, rtol=0, atol=1e-6)

    with pytest.raises(ConfigError, match="targets is in layers_to_transform"):
        referring(llama, tmp_path / "frames.safetensors", layers_to_transform=[2])


@pytest.mark.parametrize(
    "damage",
    [
        "values",
        "settings",
        "stream",
    ],
)
def test_changed_adapter_is_refused(llama, frames, tmp_path, damage):
    folder = tmp_path / "a"
    qpeft.save(referring(llama, frames), folder)
    if damage == "settings":
        edit_config(folder, lora_alpha=3)
    else:
        ((key, tensor),) = load_file(folder / WEIGHTS).items()
        tensor = tensor[:-4] if damage == "stream" else tensor.index_fill(0, torch.tensor([20]), 1)
        save_file({key: tensor.clone()}, folder / WEIGHTS)

    with pytest.raises(CheckpointError, match="damaged"):
        qpeft.load(llama, folder)


# -- damaged frame files


def of_q(change):
    """A change of both frames of every q_proj."""
    return lambda tensors, _: tensors.update(
        {key: change(t) for key, t in tensors.items() if "q_proj" in key}
    )


DAMAGES = {  # functions that change tensors and header
    "one side": lambda tensors, _: tensors.pop(min(tensors)),
    "no frames": lambda tensors, _: tensors.clear(),
    "newer format": lambda _, header: header.update(format=2),
    "no base": lambda _, header: header.update(base=None),
    "no header": lambda _, header: header.clear(),
    "equal columns": of_q(lambda frame: frame.index_copy(1, torch.tensor([1]), frame[:, :1])),
    "float32": of_q(torch.Tensor.float),
    "order of rows": of_q(lambda frame: frame.flip(0)),
    "sides": lambda tensors, _: tensors.update(
        {k[:-1] + "uv"[k.endswith("u")]: t for k, t in [*tensors.items()]}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_frame_file_is_refused(llama, frames, tmp_path, damage):
    with safe_open(frames, framework="pt") as opened:
        header = json.loads(opened.metadata()["qpeft"])
    DAMAGES[damage](tensors := load_file(frames), header)
    bad = tmp_path / "bad.safetensors"
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, bad, {"qpeft": json.dumps(header)}
    )
    for refused in (
        referring,
        lambda base, path: qpeft.plan(base, qpeft.QuantumPeftConfig(frames=str(path))),
    ):
        with pytest.raises(CheckpointError):
            refused(llama, bad)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_byte_changed_or_lost_anywhere_is_refused_for_adapters_that_refer_to_the_file(frames, data):
    original = frames.read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    place = data.draw(
        st.one_of(
            st.integers(0, 7),
            st.integers(0, end - 1),
            st.integers(end, len(original) - 1),
        )
    )
    damaged = bytearray(original)
    damaged[place] ^= data.draw(st.integers(1, 255))
    content = {
        "frames": "damaged.safetensors",
        "frames_sha256": hashlib.sha256(original).hexdigest(),
    }
    for found in (damaged, original[:place]):
        frames.with_name("damaged.safetensors").write_bytes(found)
        with pytest.raises(CheckpointError):
            frame_file.with_frame_settings(content, frames.parent / "a")


def test_bad_frames_are_not_written(llama, tmp_path):
    zeros = {"model.layers.0.self_attn.q_proj": (torch.zeros(16, 2),) * 2}
    with pytest.raises(CheckpointError, match="orthonormal"):
        frame_file.write_frame_file(tmp_path / "bad", zeros, {}, llama)
    assert not list(tmp_path.iterdir())


class Packed(torch.nn.Module):
    """As a linear map of a quantized base: the weight has another shape and no signs."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)


def test_frames_fit_a_quantized_base_and_are_made_on_one(llama, frames, tmp_path):
    file = frame_file.read_frame_file(frames)
    packed = copy.deepcopy(llama)
    for name in file.shapes:
        packed.set_submodule(name, Packed(packed.get_submodule(name)))
    file.check_base(packed)
    pairs = {name: (file.tensors[f"{name}.u"], file.tensors[f"{name}.v"]) for name in file.shapes}
    made = frame_file.write_frame_file(
        tmp_path / "made.safetensors",
        pairs,
        file.settings,
        packed,
    )
    made.check_base(packed)
    made.check_base(llama)


def test_load_reads_the_frame_file_once(llama, frames, tmp_path, monkeypatch):
    qpeft.save(referring(llama, frames), tmp_path / "a")
    decoded = Mock(wraps=frame_file._decoded)
    monkeypatch.setattr(frame_file, "_decoded", decoded)
    qpeft.load(copy.deepcopy(llama), tmp_path / "a")
    decoded.assert_called_once()


def test_pool_reads_the_frame_file_once(llama, frames, adapters, ids, tmp_path):
    alone = {}
    for index in range(4):
        model = referring(llama, frames)
        qpeft.save(model, tmp_path / "users" / str(index))
        alone[str(index)] = adapters.logits(model, ids)
    pool = qpeft.AdapterPool(copy.deepcopy(llama), tmp_path / "users", capacity=2)
    frames.unlink()
    for name in [*alone, *reversed(alone)]:
        pool.activate(name)
        assert torch.equal(adapters.logits(pool.model, ids), alone[name])
