"""A frame file: adapters that refer to it equal those with frames inside, are small on the disk, and refuse others."""

import copy
import hashlib
import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import qpeft
from qpeft.core import frame_file
from qpeft.errors import CheckpointError, ConfigError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SHARED = {"r": 3, "n_layers": 1, "share": "type", "frame_rank": 8, "task_type": "CAUSAL_LM"}
EIGHT_BITS = {"bits": 8, "lambda_bits": 4}
TARGETS = ["q_proj", "up_proj", "down_proj"]

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    """No frame file is known, as in a new process."""
    monkeypatch.setattr(frame_file, "_KNOWN", {})


@pytest.fixture
def batches(ids):
    return [{"input_ids": ids}]


@pytest.fixture
def frames(llama, batches, tmp_path):
    """A frame file of the base model `llama`."""
    model = get_peft_model(copy.deepcopy(llama), qpeft.QuantumPeftConfig(**SHARED, frame="gradient",
                                                                       target_modules=TARGETS))  # fmt: skip
    qpeft.fit_frames(model, batches, save_to=tmp_path / "frames")
    return tmp_path / "frames.safetensors"


def randomized(base, config, fit=None, seed=1):
    """A new adapter with random trained parameters, in evaluation mode."""
    model = get_peft_model(copy.deepcopy(base), config)
    if fit is not None:
        qpeft.fit_frames(model, fit)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.base_model.generators.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.base_model.generators.invalidate()
    return model.eval()


def referring(base, frames, **settings):
    return randomized(base, qpeft.QuantumPeftConfig(**{**SHARED, **settings}, frames=str(frames)))


def forget():
    frame_file._KNOWN.clear()


def folder_size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bits": 16, "lambda_bits": 16},
        EIGHT_BITS,
        {"family": "lie", "freeze_angles": True},
        {"modules_to_save": ["norm"], "lambda_bits": 8},
    ],
    ids=str,
)
def test_logits_are_equal_with_frames_inside_and_outside(llama, ids, batches, frames, adapters, tmp_path, settings):
    config = qpeft.QuantumPeftConfig(**{**SHARED, **settings}, frame="gradient", target_modules=TARGETS)
    inside = randomized(llama, config, fit=batches)
    outside = referring(llama, frames, **settings)
    expected = adapters.logits(inside, ids)
    assert not torch.equal(expected, adapters.logits(llama, ids))
    assert torch.equal(adapters.logits(outside, ids), expected)
    qpeft.save(inside, tmp_path / "inside")
    qpeft.save(outside, tmp_path / "outside")
    assert qpeft.export(outside, tmp_path / "exported").max_logit_difference <= 1e-6
    forget()
    for name in ("inside", "outside"):
        loaded = qpeft.load(copy.deepcopy(llama), tmp_path / name).eval()
        assert torch.equal(adapters.logits(loaded, ids), expected)
    stock = PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / "exported").eval()
    torch.testing.assert_close(adapters.logits(stock, ids), expected, atol=1e-5, rtol=0)


def test_adapter_of_300_parameters_is_below_1_kb(ids, adapters, tmp_path):
    """Files of the folder, without the frame file. The 300 parameters of the issue: 182 angles and 105 lambda."""
    from tiny_models import llama

    base = llama(hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8,
                 num_key_value_heads=4)  # fmt: skip
    settings = {"r": 3, "n_layers": 1, "share": "type", "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(copy.deepcopy(base), qpeft.QuantumPeftConfig(**settings, frame="gradient"))
    qpeft.fit_frames(model, [{"input_ids": ids}], save_to=tmp_path / "frames")
    sizes = {}
    for name, stored in (("float16", {"bits": 16, "lambda_bits": 16}), ("8 bits", EIGHT_BITS)):
        config = qpeft.QuantumPeftConfig(**settings, **stored, frames=str(tmp_path / "frames.safetensors"))
        adapter = randomized(base, config)
        assert adapter.get_nb_trainable_parameters()[0] == 287
        qpeft.save(adapter, tmp_path / name)
        (tensor,) = load_file(tmp_path / name / WEIGHTS).values()
        sizes[name] = folder_size(tmp_path / name), tensor.numel()
        loaded = qpeft.load(copy.deepcopy(base), tmp_path / name).eval()
        assert torch.equal(adapters.logits(loaded, ids), adapters.logits(adapter, ids))
    assert sizes["float16"][0] <= 1000
    assert sizes["8 bits"][0] <= 600
    assert sizes["8 bits"][1] <= 256


def test_adapter_stores_only_settings_that_differ(llama, frames, tmp_path):
    qpeft.save(referring(llama, frames, r=2, seed=7), tmp_path / "users" / "a")
    stored = json.loads((tmp_path / "users" / "a" / CONFIG).read_text())
    sha = hashlib.sha256(frames.read_bytes()).hexdigest()
    assert stored == {
        **{"peft_type": "QPEFT_QUANTUM_PEFT", "format_version": 2, "r": 2, "seed": 7},
        **{"frames": "frames.safetensors", "frames_sha256": sha},
    }
    assert sorted(path.name for path in (tmp_path / "users" / "a").iterdir()) == [CONFIG, WEIGHTS]
    config = qpeft.load(llama, tmp_path / "users" / "a").peft_config["default"]
    assert (config.r, config.seed, config.frame_rank, config.target_modules) == (2, 7, 8, set(TARGETS))


def test_frame_file_has_the_same_bytes_again(llama, batches, frames, tmp_path):
    model = get_peft_model(copy.deepcopy(llama), qpeft.QuantumPeftConfig(**SHARED, frame="gradient",
                                                                       target_modules=TARGETS))  # fmt: skip
    with pytest.raises(ConfigError, match=r"frames\.safetensors exists, and adapters may refer to it"):
        qpeft.fit_frames(model, batches, save_to=frames.with_suffix(""))
    qpeft.fit_frames(model, batches, save_to=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == frames.read_bytes()


def test_missing_or_different_frame_file_is_refused(llama, batches, frames, adapters, ids, tmp_path):
    model = referring(llama, frames)
    qpeft.save(model, tmp_path / "users" / "a")
    sha = hashlib.sha256(frames.read_bytes()).hexdigest()
    moved = frames.rename(tmp_path / "elsewhere.safetensors")
    forget()
    for loads in (qpeft.load, PeftModel.from_pretrained):
        with pytest.raises(CheckpointError, match=rf"frames\.safetensors with SHA-256 {sha}, which is missing"):
            loads(copy.deepcopy(llama), tmp_path / "users" / "a")
    other = get_peft_model(copy.deepcopy(llama), qpeft.QuantumPeftConfig(**SHARED, frame="gradient",
                                                                       target_modules=TARGETS))  # fmt: skip
    qpeft.fit_frames(other, [{"input_ids": (ids + 1) % 50}], save_to=frames)
    with pytest.raises(CheckpointError, match=rf"frames\.safetensors .SHA-256 .* is not the one .* with SHA-256 {sha}"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "users" / "a")
    with pytest.raises(ConfigError, match="there is no frame file"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "users" / "a", frames=tmp_path / "none.safetensors")
    loaded = qpeft.load(copy.deepcopy(llama), tmp_path / "users" / "a", frames=moved).eval()
    assert torch.equal(adapters.logits(loaded, ids), adapters.logits(model, ids))


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
    ("settings", "message"),
    [
        ({"frame": "random"}, "frames names a file"),
        ({"target_modules": ["k_proj"]}, "has 0 directions for model.layers.0.self_attn.k_proj"),
        ({"frames_sha256": "0" * 64}, "is not the one"),
        ({"r": 9}, "exceeds 8, the most for"),
        ({"lambda_bits": 5}, "unknown lambda_bits 5"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_frame_file_raise(llama, frames, settings, message):
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        referring(llama, frames, **settings)
    assert message in str(caught.value)


def test_fewer_directions_are_the_first_of_the_file(llama, batches, frames, adapters, ids):
    model = referring(llama, frames, frame_rank=4)
    stored = load_file(frames)
    for name, (u, _) in model.base_model.generators["default"].matrix_frames().items():
        assert torch.equal(u, stored[f"{name}.u"][:, :4].float())


@pytest.mark.parametrize("damage", ["values", "settings", "stream"])
def test_changed_adapter_is_refused(llama, frames, tmp_path, damage):
    folder = tmp_path / "a"
    qpeft.save(referring(llama, frames), folder)
    if damage == "settings":
        stored = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**stored, "lora_alpha": 3}))
    else:
        (key, tensor), = load_file(folder / WEIGHTS).items()  # fmt: skip
        tensor = tensor[:-4] if damage == "stream" else tensor.index_fill(0, torch.tensor([20]), 1)
        save_file({key: tensor.clone()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="damaged"):
        qpeft.load(llama, folder)


def test_file_that_is_no_frame_file_is_refused(llama, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is not a frame file, or damaged"):
        referring(llama, tmp_path / "other.safetensors")


@pytest.mark.parametrize("damage", ["one side", "directions", "no frames", "newer format"])
def test_damaged_frame_file_is_refused(llama, frames, tmp_path, damage):
    with safe_open(frames, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(frames)
    name = next(key for key in tensors if key.endswith(".v"))
    if damage == "one side":
        del tensors[name]
    elif damage == "no frames":
        tensors.clear()
    elif damage == "newer format":
        metadata = {"qpeft": json.dumps({**json.loads(metadata["qpeft"]), "format": 2})}
        tensors = {"other": torch.zeros(1)}
    else:
        tensors[name] = tensors[name][:, :2].clone()
    save_file(tensors, tmp_path / "damaged.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="is not a frame file, or damaged"):
        referring(llama, tmp_path / "damaged.safetensors")


def write(path, tensors, header):
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"qpeft": json.dumps(header)})


def read(path):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["qpeft"])
    return load_file(path), header


def second_is_first(frame):
    return frame.index_copy(1, torch.tensor([1]), frame[:, :1])


@pytest.mark.parametrize(
    "change",
    [
        torch.zeros_like,
        second_is_first,
        lambda frame: 1.01 * frame,
        lambda frame: frame.index_fill(0, torch.tensor([0]), torch.nan),
        lambda frame: frame.index_fill(0, torch.tensor([0]), torch.inf),
        lambda frame: torch.eye(*frame.shape, dtype=torch.int16),
        torch.Tensor.float,
        lambda frame: frame[:, :0],
        lambda frame: frame[0],
    ],
)
def test_frames_that_are_no_orthonormal_float16_columns_are_refused(llama, frames, tmp_path, change):
    tensors, header = read(frames)
    chosen = [key for key in tensors if "q_proj" in key]
    write(tmp_path / "bad.safetensors", {**tensors, **{key: change(tensors[key]) for key in chosen}}, header)
    for refused in (referring, lambda base, path: qpeft.plan(base, qpeft.QuantumPeftConfig(frames=str(path)))):
        with pytest.raises(CheckpointError, match="is not a frame file, or damaged"):
            refused(llama, tmp_path / "bad.safetensors")


def swapped(tensors, names):
    pairs = [(f"{name}.u", f"{name}.v") for name in names]
    return tensors | {one: tensors[other] for u, v in pairs for one, other in ((u, v), (v, u))}


@pytest.mark.parametrize(("base", "target"), [("gpt2", "c_attn"), ("llama", "up_proj")])
def test_swapped_sides_are_refused(request, batches, ids, tmp_path, base, target):
    base = request.getfixturevalue(base)
    model = get_peft_model(copy.deepcopy(base), qpeft.QuantumPeftConfig(**SHARED, frame="gradient",
                                                                       target_modules=[target]))  # fmt: skip
    qpeft.fit_frames(model, batches, save_to=tmp_path / "frames")
    tensors, header = read(tmp_path / "frames.safetensors")
    referring(base, tmp_path / "frames.safetensors")
    write(tmp_path / "bad.safetensors", swapped(tensors, {key.rpartition(".")[0] for key in tensors}), header)
    with pytest.raises(CheckpointError, match="other shapes"):
        referring(base, tmp_path / "bad.safetensors")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_byte_changed_anywhere_is_refused_for_adapters_that_refer_to_the_file(frames, data):
    original = frames.read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    place = data.draw(st.one_of(st.integers(0, 7), st.integers(0, end - 1), st.integers(end, len(original) - 1)))
    damaged = bytearray(original)
    damaged[place] ^= data.draw(st.integers(1, 255))
    frames.with_name("damaged.safetensors").write_bytes(damaged)
    forget()
    content = {"frames": "damaged.safetensors", "frames_sha256": hashlib.sha256(original).hexdigest()}
    with pytest.raises(CheckpointError):
        frame_file.complete(content, frames.parent / "a")


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1, -8])
def test_truncated_file_is_refused(frames, size):
    frames.write_bytes(frames.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="is not a frame file, or damaged"):
        frame_file.read_frame_file(frames)


def test_name_that_no_file_can_have_is_refused(llama, frames, tmp_path):
    qpeft.save(referring(llama, frames), tmp_path / "a")
    content = json.loads((tmp_path / "a" / CONFIG).read_text())
    (tmp_path / "a" / CONFIG).write_text(json.dumps({**content, "frames": "x" * 300}))
    forget()
    with pytest.raises(CheckpointError, match="which is missing"):
        PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / "a")
    with pytest.raises(ConfigError, match="there is no frame file"):
        referring(llama, tmp_path / ("x" * 300))


def replace_in_place(path, data):
    """Other bytes, with the same size, inode and time of modification."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_ino, after.st_mtime_ns) == (before.st_size, before.st_ino, before.st_mtime_ns)


@pytest.fixture
def replaced(llama, ids, frames, tmp_path):
    """An adapter, and its frame file after it was read, with the bytes of other frames of the same base."""
    qpeft.save(referring(llama, frames), tmp_path / "users" / "a")
    qpeft.load(copy.deepcopy(llama), tmp_path / "users" / "a", frames=frames)
    other = get_peft_model(copy.deepcopy(llama), qpeft.QuantumPeftConfig(**SHARED, frame="gradient",
                                                                       target_modules=TARGETS))  # fmt: skip
    qpeft.fit_frames(other, [{"input_ids": (ids + 1) % 50}], save_to=tmp_path / "other")
    replace_in_place(frames, (tmp_path / "other.safetensors").read_bytes())
    return tmp_path / "users" / "a", frames


@pytest.mark.parametrize("given", [False, True])
def test_replaced_file_of_equal_time_size_and_inode_is_refused(llama, replaced, given):
    folder, file = replaced
    options = {"frames": file} if given else {}
    for loads, place in ((qpeft.load, folder), (qpeft.AdapterPool, folder.parent)):
        with pytest.raises(CheckpointError, match="SHA-256"):
            loads(copy.deepcopy(llama), place, **options)
    if not given:
        with pytest.raises(CheckpointError, match="SHA-256"):
            PeftModel.from_pretrained(copy.deepcopy(llama), folder)


def test_new_adapter_has_the_frames_and_the_hash_of_the_replaced_file(llama, replaced):
    _, file = replaced
    model = referring(llama, file)
    assert model.peft_config["default"].frames_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    stored = load_file(file)
    for name, (u, v) in model.base_model.generators["default"].matrix_frames().items():
        assert torch.equal(u, stored[f"{name}.u"].float())
        assert torch.equal(v, stored[f"{name}.v"].float())


def test_plan_notices_a_damage_that_keeps_time_size_and_inode(llama, frames):
    config = qpeft.QuantumPeftConfig(**SHARED, frames=str(frames))
    qpeft.plan(llama, config)
    data = frames.read_bytes()
    replace_in_place(frames, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        qpeft.plan(llama, config)


def test_frames_are_those_of_the_bytes_that_were_hashed(llama, frames, monkeypatch):
    """A file that is replaced between two reads of one `get_peft_model` is not used."""
    read_files = qpeft.QuantumPeftConfig.read_files

    def then_replace(config, base):
        read_files(config, base)
        tensors, header = read(frames)
        write(frames, {key: -tensor for key, tensor in tensors.items()}, header)

    monkeypatch.setattr(qpeft.QuantumPeftConfig, "read_files", then_replace)
    with pytest.raises(CheckpointError, match="is not the one"):
        referring(llama, frames)


def test_frames_are_read_under_another_default_device(frames):
    with torch.device("meta"):
        found = frame_file.read_frame_file(frames).tensors
    assert all(torch.equal(found[key], tensor) for key, tensor in load_file(frames).items())


def test_bad_frames_are_not_written(llama, tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    width = llama.config.hidden_size
    with pytest.raises(CheckpointError, match="orthonormal"):
        frame_file.write_frame_file(tmp_path / "bad", {name: (torch.zeros(width, 2),) * 2}, {}, llama)
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
    made = frame_file.write_frame_file(tmp_path / "made.safetensors", pairs, file.settings, packed)
    made.check_base(packed)
    made.check_base(llama)


def test_given_frame_file_must_be_that_of_the_adapter(llama, batches, frames, ids, tmp_path):
    qpeft.save(referring(llama, frames), tmp_path / "users" / "a")
    other = get_peft_model(copy.deepcopy(llama), qpeft.QuantumPeftConfig(**SHARED, frame="gradient",
                                                                       target_modules=TARGETS))  # fmt: skip
    qpeft.fit_frames(other, [{"input_ids": (ids + 1) % 50}], save_to=tmp_path / "other")
    sha, given = (hashlib.sha256(f.read_bytes()).hexdigest() for f in (frames, tmp_path / "other.safetensors"))
    for loads in (qpeft.load, qpeft.AdapterPool):
        folder = tmp_path / "users" / ("a" if loads is qpeft.load else "")
        with pytest.raises(CheckpointError, match=f"{given}. is not the one .*{sha}"):
            loads(copy.deepcopy(llama), folder, frames=tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="there is no frame file"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "users" / "a", frames="")


def test_adapter_is_saved_after_its_frame_file_was_moved(llama, frames, adapters, ids, tmp_path):
    qpeft.save(referring(llama, frames), tmp_path / "a")
    model = qpeft.load(copy.deepcopy(llama), tmp_path / "a", is_trainable=True)
    moved = frames.rename(tmp_path / "moved.safetensors")
    qpeft.save(model, tmp_path / "b")
    model.save_pretrained(tmp_path / "c")
    for name in ("b", "c"):
        assert (tmp_path / name / CONFIG).read_bytes() == (tmp_path / "a" / CONFIG).read_bytes()
        forget()
        loaded = qpeft.load(copy.deepcopy(llama), tmp_path / name, frames=moved)
        assert torch.equal(adapters.logits(loaded.eval(), ids), adapters.logits(model.eval(), ids))


def test_pool_reads_the_frame_file_once(llama, frames, adapters, ids, tmp_path):
    alone = {}
    for index in range(4):
        model = referring(llama, frames, seed=index % 2)
        qpeft.save(model, tmp_path / "users" / str(index))
        alone[str(index)] = adapters.logits(model, ids)
    moved = frames.rename(tmp_path / "moved.safetensors")
    pool = qpeft.AdapterPool(copy.deepcopy(llama), tmp_path / "users", capacity=2, frames=moved)
    moved.unlink()
    for name in [*alone, *reversed(alone)]:
        pool.activate(name)
        assert torch.equal(adapters.logits(pool.model, ids), alone[name])
    generators = [pool._drawn(seed) for seed in (0, 1)]
    first, second = (dict(generator.frames.named_buffers()) for generator in generators)
    assert generators[0] is not generators[1]
    assert all(first[label].data_ptr() == second[label].data_ptr() for label in first)


def test_plan_counts_the_bytes_of_an_adapter_that_refers_to_a_frame_file(llama, frames, tmp_path):
    for index, stored in enumerate([{}, {"bits": 16, "lambda_bits": 16}, EIGHT_BITS]):
        config = qpeft.QuantumPeftConfig(**{**SHARED, **stored}, frames=str(frames))
        plan = qpeft.plan(llama, config)
        qpeft.save(referring(llama, frames, **stored), tmp_path / str(index))
        (tensor,) = load_file(tmp_path / str(index) / WEIGHTS).values()
        assert plan.stored_bytes == tensor.numel() - 8
        assert config.target_modules is None  # not changed
