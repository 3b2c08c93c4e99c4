"""The behaviour required of every method, with one test per behaviour for every method and its main
variants.
"""

import copy
from functools import partial

import pytest
import torch
import transformers
from folders import rewrite
from packaging.version import Version
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    save_as_lora,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from tables import forget_tables
from variants import RANDOM, TUNERS, VARIANTS, kinds_first, move, trained

import qpeft
import qpeft.core.export as export_module
from qpeft.core.binding import _Boundary
from qpeft.core.generated_tuner import GeneratedMixin
from qpeft.core.generator import FullPrecision
from qpeft.core.linear_tuner import LinearAdapter
from qpeft.core.own_tuner import OwnTuner
from qpeft.core.param_groups import param_groups
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import CheckpointError, ConfigError
from qpeft.methods import get, keys
from qpeft.methods.bottleneck.model import BottleneckLayer
from qpeft.testing import adapter_contract

pytestmark = pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
WEIGHTS = "adapter_model.safetensors"
ONE_EACH = ["qpa", "quantum_peft", "qaa", "sora", "bottleneck"]


@pytest.fixture(params=kinds_first(VARIANTS))
def variant(request):
    return VARIANTS[request.param]


def adapted(base, variant, moved=True, **changes):
    """The variant on a copy of `base`; with changed parameters unless `moved` is false."""
    model = variant.adapt(copy.deepcopy(base), **changes)
    return move(model) if moved else model


@pytest.fixture
def make(llama, variant):
    """`adapted` with this variant, on the same Llama in every call."""
    return partial(adapted, llama, variant)


def assert_equal_logits(adapters, ids, *models):
    first, *others = (adapters.logits(model, ids) for model in models)
    for other in others:
        assert torch.equal(other, first)


def test_matrix_includes_every_method():
    # other tests register methods as well
    own = {key for key in keys() if str(get(key).tuner).startswith("qpeft.")}
    assert own <= {variant.method for variant in VARIANTS.values()}, (
        "add a Variant to tests/support/variants.py"
    )
    for key in own:
        assert get(key).config_class().peft_type == f"QPEFT_{key.upper()}", (
            "the config's method_name"
        )


# -- the public contract: initial values, gradients, copies, two adapters, folders, merging, export


@pytest.mark.parametrize("variant", TUNERS, indirect=True)
def test_contract(llama, ids, variant):
    modules = (
        {"target_modules": ["q_proj", "down_proj"]} if "target_modules" in variant.settings else {}
    )
    adapter_contract(
        lambda: copy.deepcopy(llama),
        lambda: variant.make_config(**modules),
        {"input_ids": ids, "labels": ids},
        starts_at_base=variant.starts_at_base,
        exact_gradient=variant.exact_gradient,
    )


def values_of(model):
    """All values of the adapter, generated or its own, flat; without the hash of its settings."""
    tuner = model.base_model
    if isinstance(tuner, GeneratedMixin):
        tensors = tuner.generators.bindings["default"].values()
    else:
        tensors = [
            tensor
            for name, tensor in [*tuner.named_parameters(), *tuner.named_buffers()]
            if f".{tuner.prefix}" in name and not name.endswith("fingerprint")
        ]
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])


@pytest.mark.parametrize("variant", TUNERS, indirect=True)
def test_initial_values_depend_only_on_the_seed(llama, variant):
    has_seed = hasattr(variant.make_config(), "seed")

    def drawn(seed, noise):
        torch.manual_seed(noise)
        changes = {"seed": seed} if has_seed else {}
        return values_of(adapted(llama, variant, moved=False, **changes))

    assert torch.equal(drawn(3, noise=0), drawn(3, noise=1))
    assert torch.equal(drawn(3, noise=0), drawn(4, noise=0)) != variant.is_random

    if variant.is_random and variant.stays_float32:  # a state dict lacks them
        model, other = (adapted(llama, variant, seed=seed) for seed in (3, 4))
        with pytest.raises(CheckpointError):
            other.load_state_dict(model.state_dict())


# -- saving and loading


# an ordinary name, a module of the base, a target module, and parts of the names of tensors
NAMES = ["en", "self_attn", "q_proj", "angles", "c"]
OWNERS = ["qpa", "qaa"]  # with generators that the tuner owns, and with adapters of each layer


@pytest.mark.parametrize(
    "variant, name",
    [(variant, name) for variant in OWNERS for name in NAMES]
    + [(variant, "q_proj") for variant in ONE_EACH if variant not in OWNERS],
    indirect=["variant"],
)
def test_adapters_load_under_any_names(llama, make, ids, adapters, tmp_path, name, variant):
    modules = (
        {"target_modules": ["q_proj", "down_proj"]} if "target_modules" in variant.settings else {}
    )
    first = make(**modules)
    second = move(make(moved=False, **modules), seed=2)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    model = PeftModel.from_pretrained(
        copy.deepcopy(llama), tmp_path / "first", adapter_name=name
    ).eval()
    model.load_adapter(tmp_path / "second", "other")

    assert_equal_logits(adapters, ids, model, first)

    model.set_adapter("other")
    assert_equal_logits(adapters, ids, model, second)

    model.save_pretrained(tmp_path / "both", selected_adapters=["other"])
    again = PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / "both" / "other").eval()
    again.load_adapter(tmp_path / "first", name)

    assert_equal_logits(adapters, ids, again, second)

    again.set_adapter(name)
    assert_equal_logits(adapters, ids, again, first)


@pytest.mark.parametrize("variant", ["qpa", "quantum_peft", "qaa", "cua", "sora"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_neither_default_dtype_nor_to_empty_changes_a_value(make, ids, adapters, dtype):
    """A state dict lacks the initial values, which `to_empty` discards elsewhere."""
    model = make()
    torch.set_default_dtype(dtype)
    try:
        other = make(moved=False)
    finally:
        torch.set_default_dtype(torch.float32)
    for module in other.modules():
        if isinstance(module, FullPrecision):
            module.to_empty(device="cpu")
    other.load_state_dict(model.state_dict())

    assert_equal_logits(adapters, ids, other, model)


@pytest.mark.parametrize("variant", ONE_EACH, indirect=True)
def test_peft_saves_loads_and_recognizes_the_folder(gpt2, llama, ids, adapters, tmp_path, variant):
    gpt2.save_pretrained(tmp_path / "base")
    base = type(gpt2).from_pretrained(tmp_path / "base")
    model = move(variant.adapt(copy.deepcopy(base), modules_to_save=["ln_f"]))
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    by_name = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()

    assert_equal_logits(adapters, ids, model, loaded, by_name)

    get_peft_model(llama, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    assert type(variant.config.from_pretrained(tmp_path / "lora")) is LoraConfig
    assert type(LoraConfig.from_pretrained(tmp_path / "adapter")) is variant.config


@pytest.mark.parametrize("variant", ONE_EACH, indirect=True)
def test_config_is_not_changed(llama, gpt2, variant):
    config = variant.make_config()
    before = copy.deepcopy(config)
    for base in (llama, gpt2):
        get_peft_model(base, config)
    assert config == before


def test_training_continues_after_loading(llama, make, ids, adapters, tmp_path):
    model = make()
    qpeft.save(model, tmp_path / "compact")
    loaded = qpeft.load(llama, tmp_path / "compact", is_trainable=True, adapter_name="mine")

    assert_equal_logits(adapters, ids, loaded.eval(), model)
    assert loaded.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()

    for each in (model, loaded):
        adapters.train(each, ids, steps=2)
    assert_equal_logits(adapters, ids, loaded, model)


def test_copies_are_equal_and_independent(make, ids, adapters):
    model = make()
    other = make(moved=False)
    live = adapters.logits(model, ids)
    other.load_state_dict(model.state_dict())
    for twin in (copy.deepcopy(model), other):
        assert type(twin) is type(model)
        assert_equal_logits(adapters, ids, twin, model)
        adapters.train(twin, ids, steps=1)
        assert torch.equal(adapters.logits(model, ids), live)
        assert not torch.equal(adapters.logits(twin, ids), live)


def test_missing_tensor_and_nan_raise(llama, make, tmp_path):
    model = make()
    qpeft.save(model, tmp_path / "good")
    largest = max(load_file(tmp_path / "good" / WEIGHTS).items(), key=lambda item: item[1].numel())[
        0
    ]
    rewrite(
        tmp_path / "good", lambda t: {name: value for name, value in t.items() if name != largest}
    )

    with pytest.raises(CheckpointError, match=r"does not contain this adapter|missing"):
        qpeft.load(llama, tmp_path / "good")

    trained(model)[0].data.fill_(torch.nan)
    with pytest.raises(ConfigError, match=r"non-finite adapter parameter in|contain NaN or Inf"):
        qpeft.save(model, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


# -- several adapters, merging, export


@pytest.mark.parametrize("variant", kinds_first(TUNERS), indirect=True)
def test_status_of_adapters_is_that_of_stock_lora(llama, variant):
    def history(make_config):
        model = get_peft_model(copy.deepcopy(llama), make_config())
        found = []
        for action in (
            lambda: None,
            lambda: model.add_adapter("other", make_config()),
            lambda: model.set_adapter("other"),
            lambda: model.set_requires_grad("default"),
            lambda: model.set_adapter("default", inference_mode=True),
            lambda: (
                model.set_adapter("default"),
                model.base_model.set_adapter(["default", "other"]),
            ),
            lambda: model.delete_adapter("default"),
        ):
            action()
            status = model.get_model_status()
            trained = [key for key, p in model.named_parameters() if p.requires_grad]
            names = {
                name for name in model.peft_config if any(f".{name}" in key for key in trained)
            }
            found.append((status.enabled, status.active_adapters, status.available_adapters, names))
            with model.disable_adapter():
                trained_now = any(p.requires_grad for p in model.parameters())
                found.append((model.get_model_status().enabled, trained_now))
        for refused in ("a.b", "other"):
            with pytest.raises((KeyError, ValueError)) as error:
                model.add_adapter(refused, make_config())
            found.append((str(error.value), list(model.peft_config)))

        assert not any("default" in key for key in model.state_dict())

        return found

    assert history(variant.make_config) == history(
        lambda: LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )


@pytest.mark.parametrize("variant", kinds_first(TUNERS), indirect=True)
def test_layers_expose_their_widths_and_can_be_chosen_by_number(llama, variant):
    by_name = (
        {"target_modules": ["q_proj", "down_proj"]} if "target_modules" in variant.settings else {}
    )
    model = variant.adapt(llama, layers_to_transform=[1], **by_name)
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }

    assert layers
    assert all(".layers.1." in name for name in layers)

    for layer in layers.values():
        base = layer.get_base_layer()
        widths = (
            (base.in_features, base.out_features) if isinstance(base, torch.nn.Linear) else (16, 16)
        )
        assert (layer.in_features, layer.out_features) == widths


@pytest.mark.filterwarnings("ignore:Already following adapters were merged")
@pytest.mark.parametrize("variant", kinds_first(TUNERS), indirect=True)
def test_two_adapters_add_up_and_merge(make, llama, ids, adapters, variant):
    model = make()
    first = adapters.logits(model, ids)
    model.add_adapter("other", variant.make_config())
    model.set_adapter("other")
    second = adapters.logits(move(model, seed=2), ids)
    model.base_model.set_adapter(["default", "other"])
    both = adapters.logits(model, ids)

    assert not torch.equal(both, first)
    assert not torch.equal(both, second)

    if not variant.merges:
        return

    tolerance = 5e-3 if "use_dora" in variant.settings else 1e-4  # DoRA divides by small magnitudes

    def assert_close(found, expected):
        torch.testing.assert_close(
            adapters.logits(found, ids), expected, atol=tolerance, rtol=tolerance
        )

    model.merge_adapter(["default"])
    model.merge_adapter(safe_merge=True)

    assert model.get_model_status().merged_adapters == ["default", "other"]
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("default")
    assert_close(model, both)

    model.unmerge_adapter()
    assert_close(model, both)
    assert_close(copy.deepcopy(model).merge_and_unload(adapter_names=["other"]), second)
    assert_close(copy.deepcopy(model).merge_and_unload(), both)
    assert_close(model.unload(), adapters.logits(llama, ids))


@pytest.mark.parametrize("variant", kinds_first(TUNERS), indirect=True)
def test_adapter_names_of_a_batch(make, llama, ids, adapters, variant):
    model = make()
    model.add_adapter("other", variant.make_config())
    names = ["default", "other", "__base__"]
    if isinstance(model.base_model, OwnTuner) or not variant.merges:
        with pytest.raises(ConfigError, match="does not support adapter_names"):
            model(input_ids=ids, adapter_names=names)
        return
    logits = adapters.logits
    first = logits(model, ids)
    model.set_adapter("other")
    expected = torch.stack([first[0], logits(model, ids)[1], logits(llama, ids)[2]])
    if getattr(variant.make_config(), "use_dora", False):
        return  # PEFT's own limit
    found = model(input_ids=ids, adapter_names=names).logits

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Converting a PEFT adapter to LoRA that is already a LoRA")
def test_conversion_to_lora_by_peft_is_exact_or_refused(
    make, llama, ids, adapters, tmp_path, variant
):
    if "use_dora" in variant.settings:
        pytest.skip(
            "PEFT's limit: the conversion leaves out DoRA's magnitudes, also those of stock LoRA"
        )
    live = make()
    model = make(moved=False)
    model.load_state_dict(live.state_dict())
    rank = getattr(model.active_peft_config, "r", None)
    if rank is None:
        with pytest.raises(TypeError, match=r"support.* LoRA conversion"):
            save_as_lora(tmp_path, model, rank=1)
        return
    save_as_lora(tmp_path, model, rank)  # without a forward pass after the loading
    stock = PeftModel.from_pretrained(llama, tmp_path).eval()

    # PEFT decomposes the update in float32
    torch.testing.assert_close(
        adapters.logits(stock, ids), adapters.logits(live, ids), atol=5e-5, rtol=1e-5
    )


# -- precision and memory


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
def test_adapter_on_a_bfloat16_base_is_float32(llama, ids, adapters, variant):
    llama.bfloat16()
    model = variant.adapt(llama)
    assert {p.dtype for p in trained(model)} == {torch.float32}
    assert adapters.logits(model, ids).dtype == torch.bfloat16

    model(input_ids=ids, labels=ids).loss.backward()
    assert any(p.grad.any() for p in trained(model))

    if variant.stays_float32:
        own = [p for name, p in move(model).bfloat16().named_parameters() if "qpeft_" in name]
        assert own
        assert {p.dtype for p in own} == {torch.float32}


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("variant", kinds_first(TUNERS), indirect=True)
def test_half_precision_adapter_has_the_dtypes_of_stock_lora(
    llama, ids, adapters, tmp_path, variant, low_cpu_mem_usage
):
    llama.half()
    model = move(variant.adapt(copy.deepcopy(llama)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()

    # with low_cpu_mem_usage PEFT rounds LoRA's parameters to the dtype of the base, but not
    # generated ones nor gates
    torch.testing.assert_close(
        adapters.logits(loaded, ids), adapters.logits(model, ids), atol=2e-3, rtol=2e-3
    )

    for key, tensor in get_peft_model_state_dict(loaded).items():
        expected = get_peft_model_state_dict(model)[key]
        assert tensor.dtype == expected.dtype
        assert ".lora_" in key or torch.equal(tensor, expected)
    for layer in loaded.modules():
        if isinstance(layer, LoraLayer):
            assert layer.lora_A["default"].weight.dtype == torch.float32


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
def test_autocast_keeps_gradients_in_float32(make, ids):
    model = make()
    exact = model(input_ids=ids, labels=ids).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()

    assert loss.item() == pytest.approx(exact.item(), rel=2e-2)
    assert {p.grad.dtype for p in trained(model)} == {torch.float32}


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(make, ids, adapters, use_reentrant, variant):
    model = make().double().train()
    if model.active_peft_config.is_prompt_learning:
        pytest.skip("PEFT's limit: a prefix cannot be combined with gradient checkpointing")
    model(input_ids=ids, labels=ids).loss.backward()
    expected = adapters.gradients(model)
    model.zero_grad()
    model.enable_input_require_grads()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(input_ids=ids, labels=ids).loss.backward()

    torch.testing.assert_close(adapters.gradients(model), expected)


def test_dropout_acts_only_in_training(make, ids, adapters, variant):
    if variant.dropout is None:
        pytest.skip("no dropout")
    model = make(**{variant.dropout: 0.5})
    assert_equal_logits(adapters, ids, model, model)
    model.train()
    assert not torch.equal(adapters.logits(model, ids), adapters.logits(model, ids))


# -- training


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
def test_inference_mode_before_training_changes_no_gradient(make, ids, adapters, variant):
    def gradients(infers):
        torch.manual_seed(0)
        model = make()
        forget_tables()
        if infers:
            with torch.inference_mode():
                model(input_ids=ids)
        model(input_ids=ids, labels=ids).loss.backward()
        return adapters.gradients(model)

    torch.testing.assert_close(gradients(infers=True), gradients(infers=False), atol=0, rtol=0)
    if (
        variant.merges and not variant.attached and "use_dora" not in variant.settings
    ):  # PEFT replaces DoRA's weights
        model = make()
        with torch.inference_mode():
            model.merge_adapter()
            model.unmerge_adapter()
        adapters.train(model, ids, steps=1)


@pytest.mark.parametrize(
    "variant", [*ONE_EACH, "attached to lora", "attached to a prefix"], indirect=True
)
def test_use_between_forward_and_backward_changes_no_gradient(make, ids, adapters, tmp_path):
    model = make()
    model(input_ids=ids, labels=ids).loss.backward()
    expected = adapters.gradients(model)
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    adapters.logits(model, ids.flip(0))
    with torch.inference_mode():
        model(input_ids=ids)
    qpeft.save(model, tmp_path / "saved")
    loss.backward()

    torch.testing.assert_close(adapters.gradients(model), expected, atol=0, rtol=0)


def test_parameter_groups_contain_every_trainable_tensor_once(make, variant):
    model = make(modules_to_save=["lm_head"]) if variant.method != "attach" else make()
    groups = param_groups(model, lr=1e-3, weight_decay=0.1)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, trained(model)))
    torch.optim.AdamW(groups)


def test_generation_with_and_without_cache_is_equal(make, ids):
    model = make()
    mask = torch.ones_like(ids)
    options = {
        "input_ids": ids,
        "attention_mask": mask,
        "max_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": 0,
    }
    is_prefix = model.active_peft_config.is_prompt_learning
    if is_prefix and Version(transformers.__version__) >= Version("5.24"):
        pytest.skip("PEFT's generate ignores the prefix, with a stock adapter too")
    tokens = model.generate(**options)
    if not model.active_peft_config.is_prompt_learning:
        assert torch.equal(model.generate(**options, use_cache=False), tokens)

    assert torch.equal(tokens[:, 9], model(input_ids=ids).logits[:, -1].argmax(-1))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # dynamo's, of what it leaves to Python
def test_compiled_training_equals_uncompiled(make, llama, ids):
    try:
        torch.compile(copy.deepcopy(llama), backend="eager")(input_ids=ids, labels=ids)
    except Exception as error:
        pytest.skip(f"torch {torch.__version__} does not compile the base: {error}")
    start = make().train()
    found = {}
    for backend in (None, "aot_eager"):
        model = copy.deepcopy(start)
        run = model if backend is None else torch.compile(model, backend=backend)
        optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
        found[backend] = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = run(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            found[backend].append(loss.detach())

    torch.testing.assert_close(found["aot_eager"], found[None], atol=1e-5, rtol=1e-4)


# -- the tests above detect planted mistakes


def with_noise(plant):
    """Initial values that depend on PyTorch's generator."""
    drawn = SeededInit._drawn

    def noisy(self, name, shape, *more):
        return drawn(self, name, shape, *more) + torch.rand(tuple(shape), device=self.device)

    plant.setattr(SeededInit, "_drawn", noisy)


def without_seed(plant):
    """Initial values that are the same for every seed."""
    make = SeededInit.__init__
    plant.setattr(SeededInit, "__init__", lambda self, seed, device="cpu": make(self, 0, device))


@pytest.mark.parametrize("mistake", [with_noise, without_seed])
@pytest.mark.parametrize("variant", kinds_first(RANDOM), indirect=True)
def test_wrong_initial_values_are_detected(llama, variant, monkeypatch, mistake):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        test_initial_values_depend_only_on_the_seed(llama, variant)


def scaled_gradient(output):
    """The same bits, with 0.9 of the gradient."""
    fixed = output.detach()
    return fixed + 0.9 * (output - fixed)


@pytest.mark.parametrize("variant", [*ONE_EACH, "cua", "quic, 1", "quanta, gates"], indirect=True)
def test_wrong_gradient_is_detected(llama, ids, variant, monkeypatch):
    backward = _Boundary.backward
    change = LinearAdapter.forward
    forward = BottleneckLayer.forward
    monkeypatch.setattr(_Boundary, "backward", lambda ctx, grad: backward(ctx, 0.9 * grad))
    monkeypatch.setattr(LinearAdapter, "forward", lambda self, x: scaled_gradient(change(self, x)))
    monkeypatch.setattr(
        BottleneckLayer, "forward", lambda self, x: scaled_gradient(forward(self, x))
    )

    with pytest.raises(AssertionError, match="gradient is off"):
        test_contract(llama, ids, variant)


@pytest.mark.parametrize(
    "variant", ["qpa", "quantum_peft", "sora", "cua", "quic, 1"], indirect=True
)
@pytest.mark.parametrize("verified", [True, False])
def test_wrong_export_is_detected(llama, ids, variant, monkeypatch, verified):
    """By the export itself, and without its comparison of logits by the contract."""
    write = export_module._write

    def write_wrong(stock, *more):
        tensors = {key: 1.1 * value for key, value in stock.tensors.items()}
        write(stock._replace(tensors=tensors), *more)

    monkeypatch.setattr(export_module, "_write", write_wrong)
    if not verified:
        differences = {"max_logit_difference": 0.0}
        monkeypatch.setattr(export_module, "_differences", lambda *_, **__: differences)
    message = "logits differ from the live model" if verified else "it changes the outputs"

    with pytest.raises(AssertionError, match=rf"qpeft\.export: .*{message}"):
        test_contract(llama, ids, variant)
