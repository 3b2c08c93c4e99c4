"""Issue 67, row B: embeddings and heads that are resized, tied, targets, or trained next to the generator.

In each cell of the grid a folder gives the logits of the live model on a fresh base, loaded again from
disk and resized again, so with other values in the new rows; or the adapter is refused by name.
"""

import copy
import shutil
from functools import partial
from itertools import product

import pytest
import tiny_models
import torch
from folders import edit_json
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

import qpeft
from qpeft.core.export import has_stock_form
from qpeft.core.generated_tuner import GeneratedMixin
from qpeft.core.generator_holder import holder_of
from qpeft.errors import CheckpointError, ConfigError, VerificationError

VOCABULARY = 50
RESIZED = 57
NEW = [52, 55]  # tokens that only a resized base has
LINEAR = ["q_proj", "v_proj"]
WAYS = {
    "nothing": {},
    "head as target": {"target_modules": [*LINEAR, "lm_head"]},
    "embedding as target": {"target_modules": [*LINEAR, "embed_tokens"]},
    "both as targets": {"target_modules": [*LINEAR, "embed_tokens", "lm_head"]},
    "head in full": {"modules_to_save": ["lm_head"]},
    "embedding in full": {"modules_to_save": ["embed_tokens"]},
    "both in full": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": [1, 2]},
    "tokens of both": {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 2]}},
    "other tokens of both": {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [2]}},
}
WAYS |= {
    f"{way}, tied": {**WAYS[way], "ensure_weight_tying": True}
    for way in ("head as target", "both as targets", "both in full", "tokens")
}
CONFIGS = {
    "qpa": lambda **s: qpeft.QPAConfig(hidden=(6, 5), chunk_size=16, n_layers=2, **s),
    "quantum_peft": qpeft.QuantumPeftConfig,
    "sora": qpeft.SoRAConfig,
    "lora": LoraConfig,
    "attached": LoraConfig,
    "cua": lambda r, **s: qpeft.CUAConfig(**s),
    "quanta": lambda r, **s: qpeft.QuanTAConfig(form="mpo", **s),
    "bottleneck": lambda r, **s: qpeft.BottleneckConfig(bottleneck_size=r, **s),
}
# of PEFT, as for any LoRA
EXPECTED = "tie_word_embeddings=True|ensure_weight_tying|Setting `save_embedding_layers`"
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*({EXPECTED})"),
    pytest.mark.filterwarnings("ignore:SoRA"),  # no callback here
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a base with a tied, and of one with an untied head."""
    torch.manual_seed(0)
    made = {}
    for is_tied in (True, False):
        made[is_tied] = tmp_path_factory.mktemp("base")
        base = tiny_models.llama(num_hidden_layers=1, tie_word_embeddings=is_tied)
        base.save_pretrained(made[is_tied])
    return made


@pytest.fixture
def make(folders):
    """A fresh base, resized with new rows that nobody else has."""

    def make(is_tied, is_resized):
        base = AutoModelForCausalLM.from_pretrained(folders[is_tied])
        if is_resized:
            torch.seed()
            base.resize_token_embeddings(RESIZED, mean_resizing=False)
        return base

    return make


@pytest.fixture
def ids():
    return torch.randint(VOCABULARY, (3, 7))


def tokens(ids, is_resized):
    """`ids`, with tokens of the rows that were added."""
    if not is_resized:
        return ids
    changed = ids.clone()
    changed[:, [3, 5]] = torch.tensor(NEW)
    return changed


def config(method, way, is_resized=False):
    given = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": LINEAR}
    given |= copy.deepcopy(WAYS[way])
    if is_resized and (indices := given.get("trainable_token_indices")):
        for one in indices.values() if isinstance(indices, dict) else [indices]:
            one.extend(NEW)
    return CONFIGS[method](**given)


def adapt(base, method, settings):
    model = get_peft_model(base, settings)
    if method == "attached":
        model = qpeft.attach(model, qpeft.QPAGeneratorConfig(n_layers=2))
    return model


def rounds(model, fresh, folder):
    """The adapter, copied, and saved and loaded in each way."""
    is_attached = not isinstance(model.base_model, GeneratedMixin) and holder_of(model) is not None
    model.save_pretrained(folder / "pretrained")
    if not is_attached:  # which PEFT alone refuses
        yield "save_pretrained", PeftModel.from_pretrained(fresh(), folder / "pretrained")
    yield "a checkpoint by load", qpeft.load(fresh(), folder / "pretrained")
    qpeft.save(model, folder / "saved")
    yield "save", qpeft.load(fresh(), folder / "saved")
    is_stock = holder_of(model) is None and not hasattr(model.base_model, "stock_problem")
    if not is_stock:  # stock LoRA of a tied head cannot be copied
        yield "copy", copy.deepcopy(model)
    if not is_stock and has_stock_form(model):
        qpeft.export(model, folder / "exported")
        yield "export", PeftModel.from_pretrained(fresh(), folder / "exported")
        yield "export by load", qpeft.load(fresh(), folder / "exported")


LONG = pytest.mark.long
EVERY = [("qpa", way) for way in WAYS]
SOME = [
    (method, way)
    for method in ("quantum_peft", "sora")
    for way in ("nothing", "head as target", "head in full", "tokens")
]
STOCK = [("lora", "tokens"), ("lora", "both as targets")]
OWN = [(method, way) for method in ("cua", "quanta") for way in ("head as target", "head in full")]
OWN += [("bottleneck", "head in full")]
ATTACHED = [("attached", way) for way in ("nothing", "head in full", "tokens")]


def grid():
    """Other methods share the code of QPA or of CUA, so on most bases they are long, as is everything
    on an untied base that was not resized: its parts are those of `test_life.py`.
    """
    cells = [*EVERY, *SOME, *STOCK, *OWN, *ATTACHED]
    for (method, way), *base in product(cells, (True, False), (True, False)):
        is_long = not any(base) or (method not in ("qpa", "cua") and not all(base))
        yield pytest.param(method, way, *base, marks=[LONG] * is_long)


@pytest.mark.parametrize("method, way, is_tied, is_resized", [*grid()])
def test_b_folder_gives_the_live_logits_on_a_fresh_base(
    make, ids, adapters, tmp_path, method, way, is_tied, is_resized
):
    ids = tokens(ids, is_resized)
    model = adapt(make(is_tied, is_resized), method, config(method, way, is_resized))
    live = adapters.logits(adapters.train(model, ids, lr=2e-2), ids)
    for name, loaded in rounds(model, lambda: make(is_tied, is_resized), tmp_path):
        exact = not (method == "cua" and name.startswith("export"))  # as an OFT
        tolerance = {"atol": 0 if exact else 1e-5, "rtol": 0}
        torch.testing.assert_close(adapters.logits(loaded.eval(), ids), live, **tolerance)


@pytest.mark.parametrize("method", ["quantum_peft", "sora"])
def test_embedding_as_target_of_a_method_for_linear_layers_is_refused(make, method):
    with pytest.raises(ConfigError, match=r"adapts linear layers, and model\.embed_tokens"):
        get_peft_model(make(True, False), config(method, "embedding as target"))


# a way of each kind of saved part
RESUMED = ("nothing", "both as targets, tied", "both in full", "tokens of both")
EVERY_RUN = [
    ("qpa", way) if way in RESUMED else pytest.param("qpa", way, marks=LONG) for way in WAYS
]


@pytest.mark.parametrize("is_tied", [True, pytest.param(False, marks=LONG)])
@pytest.mark.parametrize(
    "method, way", [*EVERY_RUN, ("quantum_peft", "tokens"), ("sora", "head as target")]
)
def test_b_run_of_a_resized_base_resumes(make, ids, adapters, tmp_path, method, way, is_tied):
    ids = tokens(ids, is_resized=True)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    settings = {"max_steps": 2, "save_steps": 1, "learning_rate": 2e-2, "use_cpu": True}

    def trainer():
        model = get_peft_model(make(is_tied, True), config(method, way, is_resized=True))
        arguments = TrainingArguments(str(tmp_path), disable_tqdm=True, **settings)
        return Trainer(model, arguments, train_dataset=rows)

    whole = trainer()
    whole.train()
    live = adapters.logits(whole.model.eval(), ids)
    loaded = PeftModel.from_pretrained(make(is_tied, True), tmp_path / "checkpoint-2")

    assert torch.equal(adapters.logits(loaded.eval(), ids), live)

    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert torch.equal(adapters.logits(resumed.model.eval(), ids), live)


@pytest.mark.parametrize("method", ["qpa", "sora", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_b_resized_base_that_was_made_in_memory_keeps_its_rows(
    ids, adapters, tmp_path, method, family
):
    """There is no config of it on the disk; stock LoRA is given `save_embedding_layers`."""

    def make():
        torch.manual_seed(0)
        base = getattr(tiny_models, family)(tie_word_embeddings=family == "gpt2")
        torch.seed()
        base.resize_token_embeddings(RESIZED, mean_resizing=False)
        return base

    ids = tokens(ids, is_resized=True)
    settings = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": "all-linear"}
    model = get_peft_model(make(), CONFIGS[method](**settings))
    live = adapters.logits(adapters.train(model, ids, lr=2e-2), ids)
    for name, loaded in rounds(model, make, tmp_path):
        if method != "lora" or name == "save":
            assert torch.equal(adapters.logits(loaded.eval(), ids), live), name


# -- a tied head


def test_tied_head_follows_the_embedding_with_the_gradient_of_stock_peft(
    make, ids, adapters, tmp_path
):
    """Stock LoRA has the head's factors as parameters of their own: their gradients are added."""
    model = get_peft_model(make(True, False), config("qpa", "both as targets, tied"))
    qpeft.export(adapters.train(model, ids), tmp_path)
    stock = PeftModel.from_pretrained(make(True, False), tmp_path, is_trainable=True)
    for one in (model, stock):
        one.zero_grad()
        one(input_ids=ids, labels=ids).loss.backward()
    embedding = stock.get_input_embeddings()
    head = stock.get_output_embeddings()
    followed = embedding.lora_embedding_A["default"]

    assert torch.equal(head.lora_B["default"].weight, followed.t())
    assert followed.abs().max() > 0

    followed.grad += head.lora_B["default"].weight.grad.t()
    embedding.lora_embedding_B["default"].grad += head.lora_A["default"].weight.grad.t()
    generator = model.base_model.generators["default"]
    slots = model.base_model.generators.bindings["default"].slots
    paths = {id(module): path for path, module in model.named_modules()}
    filled = [stock.get_parameter(f"{paths[id(slot.owner)]}.{slot.name}") for slot in slots]
    gradient = torch.cat([parameter.grad.flatten() for parameter in filled])
    wanted = torch.autograd.grad(generator(), [*generator.parameters()], gradient)
    for parameter, expected in zip(generator.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("method", ["qpa", "quantum_peft", "sora"])
def test_tied_embeddings_of_an_encoder_and_a_decoder_are_refused(method):
    """Stock PEFT gives each of the three embeddings an adapter of its own, of which two do nothing."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    base = T5ForConditionalGeneration(T5Config(vocab_size=50, **sizes))
    before = {name: p.requires_grad for name, p in base.named_parameters()}
    targets = {"target_modules": ["shared", "lm_head"], "ensure_weight_tying": True}
    with pytest.raises(ConfigError, match="set ensure_weight_tying=False"):
        get_peft_model(base, CONFIGS[method](r=2, task_type="SEQ_2_SEQ_LM", **targets))

    assert {name: p.requires_grad for name, p in base.named_parameters()} == before


# -- folders of resized bases


def resized(make, ids, adapters):
    model = get_peft_model(make(True, True), config("qpa", "nothing"))
    return adapters.train(model, tokens(ids, is_resized=True))


def test_tied_embeddings_are_saved_once_and_left_alone(make, ids, adapters, tmp_path):
    model = resized(make, ids, adapters)
    version = model.get_input_embeddings().weight._version
    qpeft.save(model, tmp_path / "saved")
    qpeft.export(model, tmp_path / "exported")
    for name in ("saved", "exported"):
        saved = load_file(tmp_path / name / "adapter_model.safetensors")
        with_rows = [key for key, tensor in saved.items() if RESIZED in tensor.shape]
        assert with_rows == ["base_model.model.model.embed_tokens.weight"]

    assert model.get_input_embeddings().weight._version == version


def test_base_of_another_vocabulary_is_refused_with_the_remedy(make, ids, adapters, tmp_path):
    qpeft.save(resized(make, ids, adapters), tmp_path)
    with pytest.raises(CheckpointError, match=r"resize_token_embeddings\(57\)"):
        qpeft.load(make(True, False), tmp_path)


def test_export_without_the_new_rows_is_no_export(make, ids, adapters, tmp_path, monkeypatch):
    """Also if the inputs of the comparison do not read them, as of an untied embedding."""
    model = get_peft_model(make(False, True), config("qpa", "head in full"))
    adapters.train(model, ids)
    monkeypatch.setattr("qpeft.core.export.stock_embeddings", lambda *_: {})
    with pytest.raises(VerificationError, match="nothing was saved"):
        qpeft.export(model, tmp_path / "exported", probe={"input_ids": ids})


@pytest.mark.parametrize("method", ["qpa", "attached", "bottleneck", "export"])
def test_rows_that_are_missing_are_refused_but_of_an_earlier_release(
    make, ids, adapters, tmp_path, method
):
    of_export = method == "export"
    method = "qpa" if of_export else method
    model = adapt(make(True, True), method, config(method, "nothing"))
    adapters.train(model, tokens(ids, is_resized=True))
    (qpeft.export if of_export else qpeft.save)(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    saved = {key: t for key, t in load_file(path).items() if "embed_tokens" not in key}
    save_file(saved, path)
    file = "qpeft.json" if of_export else "adapter_config.json"
    edit_json(tmp_path / file, weights_sha256=None)
    loads = [partial(qpeft.load, make(True, True))]
    if method != "attached" and not of_export:
        loads.append(partial(PeftModel.from_pretrained, make(True, True)))
    for load in loads:
        with pytest.raises(CheckpointError, match=r"lacks base_model.*embed_tokens\.weight"):
            load(tmp_path)
    edit_json(tmp_path / file, embeddings=None)
    qpeft.load(make(True, True), tmp_path)


def test_head_whose_gates_are_zero_keeps_its_rows_in_an_export(make, ids, adapters, tmp_path):
    """The exported SoRA does not adapt it, so its weight has another name there."""
    ids = tokens(ids, is_resized=True)
    model = get_peft_model(make(False, True), config("sora", "head as target"))
    adapters.train(model, ids)
    with torch.no_grad():
        model.base_model.generators["default"].gates_by_module()["lm_head"].zero_()
    live = adapters.logits(model.eval(), ids)
    qpeft.export(model, tmp_path)
    loaded = PeftModel.from_pretrained(make(False, True), tmp_path)

    torch.testing.assert_close(adapters.logits(loaded.eval(), ids), live)


def test_pool_refuses_an_adapter_of_other_rows(make, ids, adapters, tmp_path):
    for name in ("a", "b"):
        qpeft.save(resized(make, ids, adapters), tmp_path / name)
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    pool = qpeft.AdapterPool(make(True, True), tmp_path)
    pool.activate("c")

    with pytest.raises(CheckpointError, match=r"other values in .*embed_tokens"):
        pool.activate("b")
