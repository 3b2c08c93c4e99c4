"""The base model of an adapter: recognized in every precision, and another one with equal shapes is
noticed.
"""

import copy
import itertools
import warnings
from contextlib import nullcontext
from unittest.mock import Mock

import families
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import GPT2ForSequenceClassification
from variants import VARIANTS, move

import qpeft
from qpeft.core.base_digest import digest, is_same, own_weights
from qpeft.errors import BaseModelWarning, CheckpointError

CHOSEN = [
    "qpa",
    "qpa with dora",
    "quantum_peft",
    "quantum_peft in frames",
    "qaa",
    "sora",
    "bottleneck",
    "attached to lora",
    "attached to ia3",
    "attached to a bottleneck",
    "attached to a prefix",
]
LOADS = {"qpeft.load": qpeft.load, "PeftModel.from_pretrained": PeftModel.from_pretrained}
PRECISIONS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SEEDS = st.integers(0, 10_000)
SIZES = st.sampled_from([2, 20, 2000])


def tuned(base, relative=0.02):
    """`base` after a small change of all its weights."""
    draw = torch.Generator().manual_seed(5)
    other = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(
                relative * parameter.std() * torch.randn(parameter.shape, generator=draw)
            )
    return other


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The base of a variant's adapter, the folder, and the ways to load it."""
    torch.manual_seed(0)
    base = tiny_models.llama()
    folders = {}

    def save(variant):
        if variant not in folders:
            folders[variant] = tmp_path_factory.mktemp("saved")
            kind = VARIANTS[variant]
            qpeft.save(move(kind.adapt(copy.deepcopy(base))), folders[variant])
        loads = ["qpeft.load"] if VARIANTS[variant].attached else list(LOADS)
        return base, folders[variant], [LOADS[name] for name in loads]

    return save


@pytest.mark.filterwarnings("ignore:.*rounded otherwise")  # of DoRA's magnitudes
@pytest.mark.parametrize("variant", CHOSEN)
def test_own_base_is_recognized_in_every_precision_and_with_a_larger_vocabulary(saved, variant):
    base, folder, loads = saved(variant)
    own = [base, copy.deepcopy(base).bfloat16(), copy.deepcopy(base).half()]
    if variant != "attached to a prefix":  # a prompt belongs to the embedding too
        own.append(copy.deepcopy(base))
        own[-1].resize_token_embeddings(base.config.vocab_size + 8)
    for load, same in itertools.product(loads, own):
        load(copy.deepcopy(same), folder)  # a warning would be an error


@pytest.mark.parametrize("variant", CHOSEN)
def test_another_base_of_equal_shapes_is_heard_once(saved, variant):
    base, folder, loads = saved(variant)
    for load in loads:
        with pytest.warns(BaseModelWarning, match="other weights") as caught:
            load(tuned(base), folder)
        assert [one.category for one in caught].count(BaseModelWarning) == 1


@pytest.mark.filterwarnings("ignore::qpeft.errors.BaseModelWarning")
@pytest.mark.parametrize("variant", ["sora", "attached to lora", "attached to a prefix"])
def test_only_training_on_another_base_makes_it_the_adapters_own(saved, tmp_path, variant):
    base, folder, _ = saved(variant)
    for is_trained, own, foreign in ((False, base, tuned(base)), (True, tuned(base), base)):
        loaded = qpeft.load(tuned(base), folder, is_trainable=is_trained)
        qpeft.save(loaded, tmp_path / str(is_trained))
        qpeft.load(copy.deepcopy(own), tmp_path / str(is_trained))
        with pytest.warns(BaseModelWarning):
            qpeft.load(copy.deepcopy(foreign), tmp_path / str(is_trained))


def test_every_adapter_is_heard_under_pythons_own_filters(saved):
    base, folder, _ = saved("sora")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        for _ in range(3):
            qpeft.load(tuned(base), folder)
    assert [one.category for one in heard].count(BaseModelWarning) == 3


@pytest.mark.parametrize("frame", ["gradient", "sign", "weights"])
def test_frames_of_another_base_are_refused(llama, ids, tmp_path, frame):
    config = qpeft.QuantumPeftConfig(
        r=3, frame=frame, frame_rank=8, target_modules=["q_proj", "up_proj"]
    )
    model = get_peft_model(copy.deepcopy(llama), config)
    if frame != "weights":
        qpeft.fit_frames(model, [{"input_ids": ids, "labels": ids}])
    qpeft.save(model, tmp_path / "a")
    for load in LOADS.values():
        load(copy.deepcopy(llama), tmp_path / "a")
        other = tuned(llama)
        with pytest.raises(CheckpointError, match=r"other weights.*qpeft\.export"):
            load(other, tmp_path / "a")
        assert other.state_dict().keys() == llama.state_dict().keys()
    for load, folder in ((qpeft.load, tmp_path / "a"), (qpeft.AdapterPool, tmp_path)):
        with pytest.raises(CheckpointError, match="other weights"):
            load(tuned(llama), folder)


@pytest.mark.parametrize("variant", ["qpa", "sora", "bottleneck"])
def test_weights_that_are_not_in_memory_are_not_compared(saved, variant):
    base, folder, _ = saved(variant)
    offloaded = tuned(base)
    for layer in (offloaded.model.layers[1].mlp, offloaded.model.layers[1].self_attn):
        layer.to("meta")
    config = PeftConfig.from_pretrained(folder)
    recorded = config.base_digest

    assert recorded is not None
    assert get_peft_model(offloaded, config).peft_config["default"].base_digest == recorded
    assert (
        VARIANTS[variant].adapt(copy.deepcopy(base).to("meta")).peft_config["default"].base_digest
        is None
    )


def test_vocabulary_resized_by_an_unknown_number_is_not_compared(monkeypatch):
    """Nothing is downloaded to learn the number."""
    base = tiny_models.gpt2()
    base.resize_token_embeddings(57, mean_resizing=False)
    asked = Mock(side_effect=OSError)
    monkeypatch.setattr(type(base.config), "from_pretrained", asked)

    assert digest(own_weights(base, "default")) is None
    assert asked.call_args.kwargs == {"local_files_only": True}


def test_adapter_made_after_merging_and_unmerging_loads_on_its_base(llama, ids, tmp_path):
    """Their rounding changes the base by its last bits, not its signs."""
    config = qpeft.QuantumPeftConfig(r=3, frame="weights", target_modules=["q_proj", "up_proj"])
    model = move(get_peft_model(copy.deepcopy(llama), config))
    model.merge_adapter()
    model.unmerge_adapter()
    model.add_adapter("b", config)
    model.set_adapter("b")
    trained = move(model)(input_ids=ids).logits
    model.save_pretrained(tmp_path, selected_adapters=["b"])
    with pytest.warns(BaseModelWarning, match="weights that differ a little from these"):
        loaded = PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / "b")
    assert (loaded(input_ids=ids).logits - trained).abs().max() < 1e-3


def test_new_head_of_a_classifier_is_not_compared(tmp_path):
    tiny_models.gpt2().save_pretrained(tmp_path / "base")
    config = qpeft.BottleneckConfig(bottleneck_size=2, target_modules=["mlp"], task_type="SEQ_CLS")

    def base():
        return GPT2ForSequenceClassification.from_pretrained(tmp_path / "base", pad_token_id=0)

    qpeft.save(get_peft_model(base(), config), tmp_path / "a")
    qpeft.load(base(), tmp_path / "a")
    other = base()
    other.transformer.h[0].mlp.c_fc.weight.data.mul_(1.01)
    with pytest.warns(BaseModelWarning):
        qpeft.load(other, tmp_path / "a")


def test_experts_count_as_weights(tmp_path):
    base = families.experts("mixtral")
    host = LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    qpeft.save(
        qpeft.attach(
            get_peft_model(copy.deepcopy(base), host), qpeft.QPAGeneratorConfig(n_layers=2)
        ),
        tmp_path,
    )
    qpeft.load(copy.deepcopy(base), tmp_path)
    base.model.layers[0].mlp.experts.down_proj.data.mul_(1.01)
    with pytest.warns(BaseModelWarning):
        qpeft.load(base, tmp_path)


def test_pool_warns_of_each_adapter_of_another_base(llama, tmp_path):
    config = {
        "r": 2,
        "n_layers": 2,
        "target_modules": ["q_proj", "up_proj"],
        "task_type": "CAUSAL_LM",
    }
    llama.name_or_path = "someone/base"
    for name, base in (("a", llama), ("b", tuned(llama)), ("c", llama)):
        qpeft.save(get_peft_model(copy.deepcopy(base), qpeft.QPAConfig(**config)), tmp_path / name)
    pool = qpeft.AdapterPool(copy.deepcopy(llama).bfloat16(), tmp_path)
    for name in "ac":
        pool.activate(name)  # a warning would be an error
    with pytest.warns(BaseModelWarning, match="adapter 'b' was trained on other weights"):
        pool.activate("b")
    with pytest.warns(BaseModelWarning):
        qpeft.AdapterPool(tuned(llama), tmp_path)
    other = tuned(llama)
    other.name_or_path = "someone/base-instruct"
    with pytest.warns(
        BaseModelWarning, match=r"'someone/base'.*'someone/base-instruct'.*BaseModelWarning"
    ):
        qpeft.load(other, tmp_path / "a")


# -- the digest itself


def drawn(seed, size=2000):
    """(size, 3) float32, of many magnitudes."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, generator=draw) * 10 ** torch.empty(size, 1).uniform_(
        -6, 1, generator=draw
    )


def agree(one, other):
    digests = [str(digest({"w": weight})) for weight in (one, other)]
    assert is_same(*digests) == is_same(*reversed(digests))
    return is_same(*digests)


@given(SEEDS, SIZES, PRECISIONS, PRECISIONS, PRECISIONS)
def test_base_agrees_with_itself_in_every_pair_of_precisions(seed, size, published, one, other):
    weight = drawn(seed, size).to(published)
    assert agree(weight.to(one), weight.to(other))


@given(SEEDS, PRECISIONS, PRECISIONS)
def test_change_by_a_thousandth_is_noticed(seed, one, other):
    weight = drawn(seed)
    factor = 1 + 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    # two precisions have only signs in common, which a factor does not change
    assert agree(weight.to(one), (weight * factor).to(other)) == (one != other)


@given(SEEDS)
def test_added_change_is_noticed_by_signs(seed):
    weight = 0.02 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(seed))
    tuned = weight + 1e-3 * torch.randn(
        weight.shape, generator=torch.Generator().manual_seed(seed + 1)
    )
    assert not agree(weight.bfloat16(), tuned.half())


def test_names_shapes_and_all_columns_count_but_not_the_layout_in_memory():
    weight = torch.ones(4, 6)
    found = {
        digest(weights)
        for weights in ({"w": weight}, {"v": weight}, {"w": weight.T}, {"w": weight, "v": weight})
    }
    assert len(found) == 4

    weight = torch.ones(4096, 4096, dtype=torch.float16)
    other = torch.where(torch.arange(4096) == 0, weight, -weight)  # equal in the first column only
    assert digest({"w": weight}) != digest({"w": other})
    assert digest({"w": drawn(0)}) == digest({"w": drawn(0).T.contiguous().T})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_equal_themselves_only(dtype):
    weight = 100 * torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    assert agree(weight.to(dtype), weight.to(dtype))
    assert not agree(weight, weight.to(dtype))
    assert not agree((weight + 7).to(dtype), weight.to(dtype))


@pytest.mark.parametrize(
    "config, is_named",
    [
        (qpeft.QPAConfig(r=2, n_layers=3), False),
        (qpeft.QPAConfig(r=2, n_layers=3, use_dora=True), True),
        (qpeft.QuantumPeftConfig(r=2, frame="random", frame_rank=4), False),
        (qpeft.QuantumPeftConfig(r=2, frame="weights", frame_rank=4), True),
    ],
    ids=["qpa", "dora", "random frames", "frames of the weights"],
)
def test_adapter_computed_from_its_base_in_another_dtype_is_named(
    llama, tmp_path, config, is_named
):
    """The norms of DoRA's magnitudes, and singular vectors of weights, are those of the rounded base."""
    config.target_modules, config.task_type = {"q_proj"}, "CAUSAL_LM"
    base = copy.deepcopy(llama).bfloat16()
    qpeft.save(get_peft_model(copy.deepcopy(base), config), tmp_path)
    qpeft.load(copy.deepcopy(base), tmp_path)  # a warning would be an error
    heard = pytest.warns(BaseModelWarning, match="rounded otherwise") if is_named else nullcontext()
    with heard:
        qpeft.load(base.float(), tmp_path)
