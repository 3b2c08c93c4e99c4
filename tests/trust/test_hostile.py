"""Issue 67, section 2, rows F, M, N and R: what an attacker or a kill can do.

Each test is named after the behaviour and ends in its row.
"""

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
import tiny_models
import torch
from folders import edit_config, edit_json, rewrite
from peft import (
    FourierFTConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    RandLoraConfig,
    ShiraConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from tables import forget_tables
from torch._subclasses import FakeTensorMode
from variants import VARIANTS, move

import qpeft
from qpeft.core.patterns import _match
from qpeft.errors import CheckpointError, ConfigError, InputError, QpeftWarning
from qpeft.files import hidden, read_json

LM = {"task_type": "CAUSAL_LM", "target_modules": ["c_attn"]}
SMALL = {**LM, "hidden": (6, 5), "chunk_size": 16, "n_layers": 2, "r": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory, adapters):
    """A base, the folder of an adapter on it, the logits of the adapter, and their ids."""
    torch.manual_seed(0)
    base = tiny_models.gpt2(n_layer=1)
    ids = torch.randint(50, (3, 5))
    folder = tmp_path_factory.mktemp("world") / "adapter"
    model = move(get_peft_model(copy.deepcopy(base), qpeft.QPAConfig(**SMALL)))
    qpeft.save(model, folder)
    return base, folder, adapters.logits(model, ids), ids


# -- N, R and M: an edited or damaged folder


@pytest.fixture
def compact(world, tmp_path):
    return shutil.copytree(world[1], tmp_path / "compact")


@pytest.fixture
def exported(world, compact, tmp_path):
    qpeft.export(qpeft.load(copy.deepcopy(world[0]), compact), tmp_path / "exported")
    return tmp_path / "exported"


@pytest.fixture(params=["compact", "exported"])
def folder(request):
    return request.getfixturevalue(request.param)


def load(world, folder):
    return qpeft.load(copy.deepcopy(world[0]), folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, 10**400])
def test_numbers_of_a_config_must_be_finite_n(world, folder, value):
    for changes in ({"lora_alpha": value}, {"alpha_pattern": {"c_attn": value}}):
        edit_config(folder, **changes)
        with pytest.raises(CheckpointError, match=rf"{folder}.*finite"):
            load(world, folder)


def test_more_generators_than_parameters_are_refused_before_they_are_made_n(world, compact):
    edit_config(compact, n_generators=10**9)
    with pytest.raises(CheckpointError, match=rf"{compact}.*n_generators=1,000,000,000"):
        load(world, compact)


def test_stock_adapter_with_a_number_that_is_not_finite_is_refused_n(world, exported):
    (exported / "qpeft.json").unlink()
    edit_config(exported, lora_alpha=math.nan)
    with pytest.raises(CheckpointError, match="lora_alpha must be a finite number"):
        load(world, exported)


def test_config_in_python_refuses_numbers_that_are_not_finite_n():
    with pytest.raises(ConfigError, match="lora_alpha must be a finite number"):
        qpeft.QPAConfig(lora_alpha=math.nan)


def test_field_of_a_stock_adapter_that_peft_does_not_know_is_named_n(world, exported):
    (exported / "qpeft.json").unlink()
    edit_config(exported, gate_of_tomorrow=3)  # as saved by a later PEFT
    with pytest.warns(QpeftWarning, match="gate_of_tomorrow, which this PEFT .* does not know"):
        load(world, exported)


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"lora_alpha": 9},
        {"use_dora": True},
        {"layer_replication": [[0, 1]]},
    ],
    ids=str,
)
def test_fields_that_an_export_fixed_are_refused_n(world, exported, changes):
    edit_config(exported, **changes)
    (name,) = changes
    with pytest.raises(CheckpointError, match=rf"{name}=.* was exported with"):
        load(world, exported)


@pytest.mark.parametrize("part", ["config", "embeddings", "weights_sha256"])
def test_record_of_an_export_that_lacks_a_part_is_refused_n(world, exported, part):
    record = read_json(exported / "qpeft.json")
    del record[part]
    (exported / "qpeft.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=rf"{exported / 'qpeft.json'} lacks {part}"):
        load(world, exported)


def test_record_of_an_export_without_fields_of_the_config_is_refused_n(world, exported):
    edit_json(exported / "qpeft.json", config={})
    with pytest.raises(CheckpointError, match="was exported with None"):
        load(world, exported)


SCALES = [{"lora_alpha": 9}, {"use_rslora": True}, {"alpha_pattern": {"c_attn": 3}}]


@pytest.mark.parametrize("changes", SCALES, ids=str)
@pytest.mark.parametrize("kind", ["compact", "attached"])
def test_scale_that_was_edited_is_refused_n(world, request, kind, changes):
    folder = request.getfixturevalue(kind)
    config = read_json(folder / "adapter_config.json")
    edit_config(folder, **changes if kind == "compact" else {"host": config["host"] | changes})

    with pytest.raises(CheckpointError, match=rf"{folder}.*adapter was saved with"):
        load(world, folder)

    edit_config(folder, saved_scale=None)  # intended, or of an earlier release
    load(world, folder)


OTHER_HOSTS = {  # and an edit that changes its function, but no tensor
    "loha": (LoHaConfig(r=2, alpha=4, target_modules=["q_proj"]), {"alpha": 64}),
    "lokr": (LoKrConfig(r=2, alpha=4, target_modules=["q_proj"]), {"alpha": 64}),
    "randlora": (RandLoraConfig(r=2, target_modules=["q_proj"]), {"randlora_alpha": 64}),
    "fourier": (FourierFTConfig(n_frequency=30, target_modules=["q_proj"]), {"scaling": 9.0}),
    "places": (FourierFTConfig(n_frequency=30, target_modules=["q_proj"]), {"random_loc_seed": 3}),
    "shira": (ShiraConfig(r=2, target_modules=["q_proj"]), {"random_seed": 3}),
    "tokens": (TrainableTokensConfig(token_indices=[1, 2]), {"token_indices": [3, 4]}),
    "oft": (OFTConfig(oft_block_size=4, target_modules=["q_proj"]), {"use_cayley_neumann": False}),
}


@pytest.mark.parametrize("host, changes", OTHER_HOSTS.values(), ids=OTHER_HOSTS)
def test_fields_of_any_host_that_were_edited_are_refused(llama, tmp_path, host, changes):
    model = get_peft_model(copy.deepcopy(llama), host)
    qpeft.save(qpeft.attach(model, qpeft.QPAGeneratorConfig(features=2, budget=70)), tmp_path)
    config = read_json(tmp_path / "adapter_config.json")
    free = {"base_model_name_or_path": "moved", "rank_dropout": 0.5}
    edit_config(
        tmp_path, host=config["host"] | {k: v for k, v in free.items() if k in config["host"]}
    )
    qpeft.load(copy.deepcopy(llama), tmp_path)

    edit_config(tmp_path, host=config["host"] | changes)
    with pytest.raises(CheckpointError, match="adapter was saved with"):
        qpeft.load(copy.deepcopy(llama), tmp_path)


def test_attached_adapters_of_0_3_have_saved_fewer_fields_n(world, attached):
    saved = read_json(attached / "adapter_config.json")["saved_scale"]
    edit_config(
        attached,
        saved_scale={"lora_alpha": saved["lora_alpha"], "alpha_pattern": {}, "use_rslora": False},
    )
    load(world, attached)


def test_mapping_of_names_is_refused_for_a_generated_adapter(world, compact):
    with pytest.raises(ConfigError, match="key_mapping"):
        qpeft.load(copy.deepcopy(world[0]), compact, key_mapping={"c_attn": "attention"})


ORDERED = ["qpa", "qpa with a network", "quantum_peft", "sora", "attached to lora"]


@pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
@pytest.mark.parametrize("name", ORDERED)
def test_order_of_the_generated_tensors_that_was_edited_is_refused(llama, tmp_path, name):
    qpeft.save(VARIANTS[name].adapt(copy.deepcopy(llama)), tmp_path)
    table = read_json(tmp_path / "adapter_config.json")["generated"]
    half = len(table) // 2  # tensors of a layer; those of the other have the same shapes
    b_first = sorted(table, key=lambda entry: "lora_B" not in entry[0])

    for edited in (table[::-1], table[half:] + table[:half], b_first):
        edit_config(tmp_path, generated=edited)
        with pytest.raises(CheckpointError, match=r"edited|damaged"):
            qpeft.load(copy.deepcopy(llama), tmp_path)


def test_folder_that_is_replaced_behind_its_check_is_refused(world, folder, monkeypatch):
    patched = "qpeft.core.checkpoint.check_patterns"  # which runs before PEFT reads the tensors
    monkeypatch.setattr(patched, lambda *_: rewrite(folder, dict))
    with pytest.raises(CheckpointError, match=rf"{folder}.* changed while it was loaded"):
        load(world, folder)


def test_invocation_tokens_of_a_host_that_were_edited_are_refused_n(world, attached):
    """With other ones the adapter acts on other tokens; with texts the first call failed."""
    host = read_json(attached / "adapter_config.json")["host"]
    for tokens in ([1], ["no"]):
        edit_config(attached, host=host | {"alora_invocation_tokens": tokens})
        with pytest.raises(CheckpointError, match=rf"{attached}.*adapter was saved with"):
            load(world, attached)


def test_base_of_an_export_can_be_renamed_n(world, exported, adapters):
    edit_config(exported, base_model_name_or_path="moved/base", inference_mode=False)
    logits = adapters.logits(load(world, exported), world[3])
    torch.testing.assert_close(logits, world[2], atol=1e-6, rtol=1e-6)


@pytest.fixture
def one_second(monkeypatch):
    monkeypatch.setattr("qpeft.core.patterns.SECONDS", 1)


CHOICES = "(.|[a-z._0-9])" * 26 + "!"  # 2**26 ways without a quantifier
EVIL = "([a-z._0-9]+)+!"  # on a name of 34 letters, `re` tries 2**34 ways


@pytest.mark.usefixtures("one_second")
@pytest.mark.parametrize(
    "kind, changes",
    [
        ("compact", {"target_modules": EVIL}),
        ("compact", {"alpha_pattern": {EVIL: 1}}),
        ("compact", {"target_modules": CHOICES}),
        ("exported", {"target_modules": EVIL}),
    ],
    ids=["target_modules", "alpha_pattern", "choices", "exported"],
)
def test_loading_ends_whatever_the_patterns_of_a_stranger_r(world, request, kind, changes):
    folder = request.getfixturevalue(kind)
    (folder / "qpeft.json").unlink(missing_ok=True)
    edit_config(folder, **changes, **({"saved_scale": None} if kind == "compact" else {}))
    with pytest.raises(InputError, match="cannot be matched"):
        load(world, folder)


@pytest.mark.usefixtures("one_second")
def test_peft_itself_refuses_the_pattern_of_a_compact_adapter_r(world, compact):
    model = load(world, compact)
    edit_config(compact, target_modules=EVIL)
    with pytest.raises(InputError, match="cannot be matched"):
        PeftModel.from_pretrained(copy.deepcopy(world[0]), compact)
    with pytest.raises(InputError, match="cannot be matched"):
        model.load_adapter(compact, "stranger")


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(c_attn|c_proj)",
        r"^(?!.*mlp).*\.h\.\d+\.(?:attn)\.(?:c_attn).*?$",
        r"(?:.*?(?:h|layers).*?(?:attn|mlp).*?(?:c_attn|q_proj).*?)|(?:\blayers\.[\d]{1,}\.(q))",
    ],
)
def test_patterns_that_people_use_are_accepted_r(world, pattern):
    base = copy.deepcopy(world[0])
    model = get_peft_model(base, qpeft.QPAConfig(**{**SMALL, "target_modules": pattern}))
    assert "transformer.h.0.attn.c_attn" in model.base_model.targeted_module_names


def test_pattern_is_matched_once_for_a_load(world, tmp_path, monkeypatch):
    settings = {**SMALL, "target_modules": r".*\.(c_attn)+"}
    model = get_peft_model(copy.deepcopy(world[0]), qpeft.QPAConfig(**settings))
    qpeft.save(model, tmp_path)
    processes = []
    run = subprocess.run
    monkeypatch.setattr(
        "subprocess.run", lambda *args, **options: processes.append(args) or run(*args, **options)
    )
    _match.cache_clear()
    load(world, tmp_path)

    assert len(processes) == 1


@pytest.fixture
def rotation(world, tmp_path):
    model = get_peft_model(copy.deepcopy(world[0]), qpeft.CUAConfig(**LM))
    qpeft.save(model, tmp_path / "rotation")
    return tmp_path / "rotation"


@pytest.fixture
def attached(world, tmp_path):
    model = get_peft_model(copy.deepcopy(world[0]), LoraConfig(**LM))
    qpeft.save(qpeft.attach(model, qpeft.QPAGeneratorConfig(n_layers=2)), tmp_path / "attached")
    return tmp_path / "attached"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["compact", "exported", "rotation", "attached"])
def test_every_refusal_of_load_names_the_file_m(world, request, kind):
    """Each field of the config with values of other types, and each tensor with another content."""
    folder = request.getfixturevalue(kind)
    config = read_json(folder / "adapter_config.json")
    (folder / "qpeft.json").unlink(missing_ok=True)  # which would refuse most of them
    refusals = []

    def refused():
        try:
            load(world, folder)
        except InputError as error:
            refusals.append(str(error))

    for name in config:
        for value in (-1, ["no", 1], "no"):
            edit_config(folder, **{**config, name: value})
            refused()
    edit_config(folder, **config)
    changes = (
        lambda tensor: tensor[:1],
        lambda tensor: tensor.to(torch.int32),
        lambda tensor: torch.full_like(tensor, math.nan) if tensor.is_floating_point() else -tensor,
    )
    weights = (folder / "adapter_model.safetensors").read_bytes()
    for key in load_file(folder / "adapter_model.safetensors"):
        for change in (*changes, None):
            (folder / "adapter_model.safetensors").write_bytes(weights)
            rewrite(
                folder,
                lambda tensors, key=key, change=change: {
                    name: change(tensor) if name == key else tensor
                    for name, tensor in tensors.items()
                    if name != key or change is not None
                },
            )
            refused()

    assert len(refusals) > 30

    files = [f"{folder}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")]
    assert [text for text in refusals if not any(file in text for file in files)] == []

    of_weights = [text for text in refusals if "contains NaN" in text]
    assert [text for text in of_weights if "adapter_model.safetensors" not in text] == []


# -- F: a kill while a folder is replaced

# replaces the folder `adapter` again and again, in children that die before their n-th operation on files
KILLS = """
import itertools, json, os, sys
from pathlib import Path
from qpeft import folders
from qpeft.folders import folder_to_replace, repair_folder, replace_folder

root, can_swap = Path(sys.argv[1]), sys.argv[2] == "True"
if not can_swap:
    folders._exchange = lambda *_: False

def write(target, text):
    with replace_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text(text)

outcomes = []
for n in itertools.count(1):
    target = root / str(n) / "adapter"
    write(target, "old")
    if not (child := os.fork()):
        left = n
        def die(event, arguments):
            global left
            left -= event.startswith(("os.", "open", "shutil.", "fcntl."))
            if not left:
                os._exit(9)
        sys.addaudithook(die)
        write(target, "new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    repair_folder(target)
    found = (target / "deep" / "weights").read_text() if target.exists() else "none"
    write(target, "next")
    remains = [path.name for path in target.parent.iterdir() if path != target]
    outcomes.append([code, found, remains])
    if code == 0:
        break
print(json.dumps(outcomes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.parametrize("can_swap", [True, False])
def test_kill_at_any_step_of_a_replacement_leaves_the_old_or_the_new_folder_f(tmp_path, can_swap):
    command = [sys.executable, "-c", KILLS, tmp_path, str(can_swap)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    outcomes = json.loads(done.stdout)
    kills = [found for code, found, _ in outcomes if code == 9]

    assert len(kills) > 20
    assert {*kills} == {"old", "new"}
    assert kills == sorted(kills, reverse=True)  # the old one up to some step, then the new one
    assert not [remains for _, _, remains in outcomes if remains]


def test_adapter_whose_replacement_was_interrupted_loads_f(world, folder):
    expected = load(world, folder).state_dict()
    folder.rename(hidden(folder).with_suffix(".replaced"))

    loaded = load(world, folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_live_process_keeps_its_unfinished_folder_f(tmp_path):
    """Also after a nested replacement, as by `save` in the block of a run."""
    from qpeft.folders import replace_folder

    code = (
        "import sys; from pathlib import Path; from qpeft.folders import replace_folder\n"
        "with replace_folder(Path(sys.argv[1])) as folder: pass"
    )
    target = tmp_path / "adapter"
    with replace_folder(target) as folder:
        with replace_folder(folder) as inner:
            (inner / "weights").write_text("mine")
        subprocess.run([sys.executable, "-c", code, target], check=True)

    assert (target / "weights").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


# -- options, names and references without a word


def test_misspelled_option_of_load_is_refused(world, compact):
    with pytest.raises(ConfigError, match=r"'is_trainble'; did you mean 'is_trainable'"):
        qpeft.load(copy.deepcopy(world[0]), compact, is_trainble=True)
    with pytest.raises(ConfigError, match="'subfolder'"):
        qpeft.load(copy.deepcopy(world[0]), compact.parent, subfolder="compact")


@pytest.mark.parametrize("selected", [["default"], ["b"]])
def test_other_adapters_of_the_model_stay_in_the_folder(world, tmp_path, selected):
    model = get_peft_model(copy.deepcopy(world[0]), qpeft.QPAConfig(**SMALL))
    model.add_adapter("b", qpeft.QPAConfig(**SMALL, seed=1))
    qpeft.save(model, tmp_path / "a")
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    assert len(before) == 2
    model.set_adapter(selected[0])  # which `move` moves
    qpeft.save(move(model), tmp_path / "a", selected_adapters=selected)

    after = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    changed = {path.parent.name for path in before if after.pop(path) != before[path]}
    assert not after
    assert changed == {"a" if selected == ["default"] else "b"}
    assert qpeft.load(copy.deepcopy(world[0]), tmp_path / "a").active_adapter == "default"
    qpeft.load(copy.deepcopy(world[0]), tmp_path / "a" / "b")


def test_name_that_a_module_cannot_have_is_refused(llama):
    changed = copy.deepcopy(llama)
    config = qpeft.QPAConfig(**SMALL | {"target_modules": ["q_proj"]})
    with pytest.raises(ConfigError, match=r"'keys'.*choose another adapter_name"):
        get_peft_model(changed, config, adapter_name="keys")
    get_peft_model(changed, config, adapter_name="own")


@pytest.mark.parametrize("config", [qpeft.QuICConfig(), qpeft.QAAConfig(), qpeft.CUAConfig()])
def test_weighted_sum_of_own_tuners_is_refused(llama, config):
    model = get_peft_model(llama, config)
    model.add_adapter("b", config)
    with pytest.raises(ConfigError, match="no weighted sum"):
        model.add_weighted_adapter(["default", "b"], [0.5, 0.5], "c")


@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"bias": "all"}])
def test_report_of_an_export_counts_what_is_not_generated(settings, tmp_path):
    base = tiny_models.gpt2(n_layer=1)
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())  # untied
    model = get_peft_model(base, qpeft.QPAConfig(**SMALL, **settings))
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    report = qpeft.export(model, tmp_path / "exported")

    assert report.n_trained == n_trained
    n_in_file = sum(
        t.numel() for t in load_file(tmp_path / "exported" / "adapter_model.safetensors").values()
    )
    assert report.n_deployed == n_in_file


def test_reference_to_another_frame_file_is_refused_with_its_hash_too(llama, ids, tmp_path):
    def in_new_frames(name, r):
        config = qpeft.QuantumPeftConfig(
            r=r, frame="gradient", frame_rank=4, target_modules=["q_proj"]
        )
        model = get_peft_model(copy.deepcopy(llama), config)
        batches = [{"input_ids": ids.flip(r % 2), "labels": ids.flip(r % 2)}]
        qpeft.fit_frames(model, batches, save_to=tmp_path / f"{name}.safetensors")
        qpeft.save(move(model), tmp_path / name)
        return read_json(tmp_path / name / "adapter_config.json")["frames_sha256"]

    in_new_frames("a", 2)
    other = in_new_frames("b", 3)
    qpeft.load(copy.deepcopy(llama), tmp_path / "a")
    edit_json(
        tmp_path / "a" / "adapter_config.json", frames="b.safetensors", frames_sha256=other, r=2
    )
    with pytest.raises(CheckpointError, match="other initial values or settings"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "a")
    edit_json(tmp_path / "a" / "adapter_config.json", frame_rank=16)
    with pytest.raises((CheckpointError, ConfigError), match="frame_rank=16, but the frame file"):
        qpeft.load(copy.deepcopy(llama), tmp_path / "a")


@pytest.mark.parametrize("name", ["lora", "qpa"])
def test_save_of_another_process_leaves_what_the_main_process_saved(llama, tmp_path, name):
    """accelerate's idiom: each process calls it, and one is the main process."""
    config = (
        LoraConfig(target_modules=["q_proj"]) if name == "lora" else VARIANTS[name].make_config()
    )
    model = get_peft_model(llama, config)
    folder = tmp_path / "adapter"
    qpeft.save(model, folder, is_main_process=True)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    qpeft.save(model, folder, is_main_process=False)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    qpeft.save(model, tmp_path / "none", is_main_process=False)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter"}


def test_refused_adapter_leaves_no_biases_in_the_base(llama, tmp_path):
    """PEFT had written them before the NaN of another tensor was found."""
    config = LoraConfig(target_modules=["q_proj"], bias="all")
    biased = copy.deepcopy(llama)
    for layer in biased.model.layers:
        layer.self_attn.q_proj.bias = torch.nn.Parameter(
            torch.zeros(layer.self_attn.q_proj.out_features)
        )
    base = copy.deepcopy(biased)
    model = get_peft_model(biased, config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.fill_(1.0)
    qpeft.save(model, tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    key = next(key for key in state if "lora_B" in key)
    state[key][0, 0] = torch.nan
    save_file(state, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN"):
        qpeft.load(base, tmp_path)
    assert not any(layer.self_attn.q_proj.bias.any() for layer in base.model.layers)


@pytest.mark.parametrize("what", ["head", "biases"])
def test_first_adapter_of_a_pool_does_not_change_the_base_of_the_others(llama, tmp_path, what):
    config = {"r": 2, "chunk_size": 64, "target_modules": ["q_proj"]}
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    base = copy.deepcopy(llama)
    for name in "ab":
        bias = "all" if what == "biases" else "none"
        model = get_peft_model(copy.deepcopy(llama), qpeft.QPAConfig(**config, bias=bias))
        qpeft.save(model, tmp_path / name)
    if what == "head":
        head = llama.lm_head.weight.detach() + 1
        rewrite(tmp_path / "a", lambda state: {**state, "base_model.model.lm_head.weight": head})
    error = CheckpointError if what == "head" else ConfigError
    with pytest.raises(error, match=r"other values of the base|trained biases"):
        qpeft.AdapterPool(base, tmp_path, capacity=1)
    after = base.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("config", [qpeft.QAAConfig, qpeft.QuanTAConfig, qpeft.QuICConfig])
def test_edited_seed_is_refused_where_transformers_loads_the_adapter(llama, tmp_path, config):
    """Its `load_adapter` sets each tensor, and calls no `load_state_dict`."""
    adapted = get_peft_model(copy.deepcopy(llama), config(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    copy.deepcopy(llama).load_adapter(str(tmp_path))
    edit_config(tmp_path, seed=7)
    with pytest.raises(CheckpointError, match="such as another seed"):
        llama.load_adapter(str(tmp_path))


@pytest.mark.parametrize("config", [qpeft.QuICConfig, qpeft.CUAConfig])
def test_tables_of_a_pass_without_values_are_not_kept(llama, ids, config):
    """`torch.export` makes such passes; every later model of the process had no values either."""
    model = get_peft_model(llama, config(target_modules=["q_proj"])).eval()
    forget_tables()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model(ids)
    assert type(model(ids).logits) is torch.Tensor


def test_pickled_weights_are_refused_at_the_save(llama, tmp_path):
    model = get_peft_model(llama, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="reads safetensors alone"):
        qpeft.save(model, tmp_path / "adapter", safe_serialization=False)


@pytest.mark.parametrize("config", [qpeft.QPAConfig, qpeft.QuantumPeftConfig, qpeft.SoRAConfig])
def test_conversion_that_would_save_no_tensors_is_refused(llama, tmp_path, config):
    model = get_peft_model(llama, config(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "initial")
    for save in (model.save_pretrained, partial(qpeft.save, model)):
        with pytest.raises(ConfigError, match="needs no conversion"):
            save(
                str(tmp_path / "a"),
                path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
            )


def test_saving_nothing_is_refused(llama, tmp_path):
    model = get_peft_model(llama, LoraConfig(target_modules=["q_proj"]))
    qpeft.save(model, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="selected_adapters is empty"):
        qpeft.save(model, tmp_path / "adapter", selected_adapters=[])
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
