"""The life of an adapter: plan, start, training, compact folder, export, merging.

For every method with every setting that changes the computation, every host of a generator, every
family of models. The life is lived once for each of them, by the fixture `life`; each test looks at
one behaviour.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from families import FAMILIES, N_TOKENS, Family, long_if_second
from folders import bytes_of, tensors_of
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    UniLoraConfig,
    VeraConfig,
    get_peft_model,
)
from torch.testing import assert_close
from variants import SMALL_GENERATOR, VARIANTS, Variant, attached, changed, trained

import qpeft
from qpeft.errors import ConfigError

pytestmark = [
    pytest.mark.filterwarnings("ignore:SoRA"),  # no callback here
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),  # PEFT's, on norms
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


# -- the rows


def named_changes(name, changes):
    """The variant with each of these settings."""
    return {f"{name}, {change}": changed(VARIANTS[name], **change) for change in changes}


def hosts(*configs):
    """Generators over these adapters of PEFT."""
    return {
        f"over {config.__name__}, {settings}": attached(
            config,
            settings,
            merges=not config(**settings).is_prompt_learning,
            generator=SMALL_GENERATOR,
            lr=1e-3,
        )
        for config, settings in configs
    }


def named(*names):
    return {name: VARIANTS[name] for name in names}


QV = {"target_modules": ["q_proj", "v_proj"]}
TOKENS = {"num_virtual_tokens": 4}
QPA_WITH_NETWORK = [
    {"rank_pattern": {"q_proj": 1}},
    {"target_modules": ["lm_head"], "r": 4},
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"modules_to_save": ["lm_head"], **QV, "chunk_size": 8},
    {"init_lora_weights": "gaussian", "vector_order": "official"},
    {"feature_source": "qnn_frozen"},
    {"feature_source": "free"},
    {"feature_source": "random"},
    {"activation": "identity", "center_output": True, "feature_map": "squash"},
]
QPA = [
    {"use_rslora": True},
    {"feature_map": "scaled", "target_modules": ["embed_tokens", "q_proj"]},
]
QUANTUM_PEFT = [
    {"columns": "first", "construction": "qsd", "r": 5},
    {"construction": "pad", "n_layers": 2},
    {"family": "lie", "lie_map": "cayley", "lie_rank": 2},
    {"entangler": "signs", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    {"entangler": "none", "share": "type"},
    {"bits": 4, "share": "type"},
    {"bits": 3, "share": "type"},
    {"bits": 1, "share": "type"},
    {"bits": 8, "freeze_angles": True},
    {"bits": 16, "lambda_bits": 16},
    {"bits": 8, "lambda_bits": 4, "modules_to_save": ["norm"]},
    {"frame": "random"},  # Llama's key and value maps take smaller frames than its others
    {"frame": "random", "family": "core"},
    {"frame": "random", "family": "lie", "frame_rank": 8, "share": "type"},
    {"frame": "weights", "frame_rank": 8, "share": "type"},
    {"frame": "weights", "family": "core", "bits": 16},
    {"frame": "sign", "family": "core"},
    {"frame": "gradient", "frame_rank": 4, "bits": 2},
    {"modules_to_save": ["norm", "lm_head"]},
]
QAA = [
    {"feature_source": "quadratic"},
    {"feature_source": "linear"},
    {"feature_source": "givens"},
    {"feature_source": "none"},
    {"feature_source": "linear", "readout": "last_r"},
    {"feature_source": "givens", "readout": "last_r"},
    {"ansatz": "qaa", "train_circuit": False},
    {"target_modules": "all-linear", "carry_norm": True, "n_layers": 2},
    {"target_modules": ["lm_head"], "out_slices": [[2, 5], [7, 8]]},
]
HOSTS = hosts(
    (PrefixTuningConfig, {**TOKENS, "prefix_projection": True, "encoder_hidden_size": 8}),
    (PromptTuningConfig, TOKENS),
    (PromptEncoderConfig, {**TOKENS, "encoder_hidden_size": 8}),
    (IA3Config, {"target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    (LoHaConfig, {"r": 2, **QV}),
    (OFTConfig, {"r": 0, "oft_block_size": 4, **QV}),
    (VeraConfig, {"r": 4, "target_modules": ["q_proj", "o_proj"]}),
    (LNTuningConfig, {"target_modules": ["input_layernorm"]}),
    (UniLoraConfig, {"theta_d_length": 64, **QV}),  # one vector that all layers share
    (LoraConfig, {"r": 2, "use_dora": True, **QV}),
    (LoraConfig, {"r": 2, "target_modules": ["lm_head"]}),
    (LoraConfig, {"r": 2, "target_modules": ["embed_tokens"]}),
    (LoraConfig, {"r": 2, "modules_to_save": ["lm_head"], **QV}),
    (LoraConfig, {"r": 2, "bias": "all", "target_modules": "all-linear"}),
)
ON_LLAMA = (
    VARIANTS
    | named_changes("qpa with a network", QPA_WITH_NETWORK)
    | named_changes("qpa", QPA)
    | named_changes("quantum_peft", QUANTUM_PEFT)
    | named_changes("qaa", QAA)
    | named_changes("quic, 1", [{"order": 1, "modules_to_save": ["lm_head", "norm"]}])
    | named_changes("sora", [{"rank_pattern": {"q_proj": 2}, "use_rslora": True}])
    | HOSTS
)
ON_GPT2 = (
    named("qpa", "qpa with dora", "quantum_peft", "qaa", "sora", "bottleneck")
    | named("quantum_peft in frames", "attached to lora", "attached to ia3")
    | named("cua, output", "quanta, gates")
    | named_changes("quantum_peft", [{"modules_to_save": ["ln_1", "ln_f"]}])
    | named_changes("quantum_peft", [{"frame": "weights", "family": "core"}])
    | named_changes("qpa with a network", [{"bias": "all"}])
    | named_changes("qaa", [{"target_modules": r".*\.1\.attn\.c_proj"}])
    | named_changes("qaa", [{"modules_to_save": ["ln_f"]}])
    | named_changes("sora", [{"modules_to_save": ["ln_f"]}])
)
ON_EVERY_FAMILY = named("qpa with a network", "quantum_peft", "qaa", "bottleneck")


@dataclass(frozen=True)
class Row:
    """A variant on a base model, with a batch for it."""

    variant: Variant
    make_base: Callable[[], Any]
    make_batch: Callable[[], dict[str, torch.Tensor]]
    options: dict[str, Any] = field(default_factory=dict)  # of the config
    family: Family | None = None


def token_ids():
    ids = torch.randint(N_TOKENS, (3, 9))
    return {"input_ids": ids, "labels": ids}


def rows_of_families():
    """The same variants on a model of every other family."""
    return {
        f"{family_name}: {name}": Row(
            variant, family.make, family.batch, options=family.options, family=family
        )
        for family_name, family in FAMILIES.items()
        for name, variant in ON_EVERY_FAMILY.items()
        if f"{family_name}: {name}" not in ROWS
    }


ROWS = {
    **{
        f"gpt2: {name}": Row(variant, tiny_models.gpt2, token_ids)
        for name, variant in ON_GPT2.items()
    },
    **{
        f"llama: {name}": Row(variant, tiny_models.llama, token_ids)
        for name, variant in ON_LLAMA.items()
    },
}
ROWS |= rows_of_families()


# -- the life


@dataclass
class Life:
    """An adapter that was planned, trained and saved; nothing in it is changed by a test."""

    row: Row
    folder: Path

    def __post_init__(self):
        torch.manual_seed(0)
        self.variant = self.row.variant
        self.batch = self.row.make_batch()
        self.base = self.row.make_base().eval()
        self.generator = self.variant.generator if self.variant.attached else None
        self.config = self.make_config()
        self.plan = qpeft.plan(self.base, self.config, self.generator)
        self.model = self._adapt()
        self.start_logits = self.logits(self.model)
        self._train()
        self.live_logits = self.logits(self.model)
        qpeft.save(self.model, self.compact)

    def make_config(self):
        return self.variant.make_config(**self.row.options)

    def logits(self, model):
        with torch.no_grad():
            return model(**self.batch).logits

    def _adapt(self):
        model = get_peft_model(copy.deepcopy(self.base), self.make_config()).eval()
        self.target_names = getattr(model.base_model, "targeted_module_names", [])
        self.untrained_logits = self.logits(model if self.variant.attached else self.base)
        if self.variant.attached:
            model.save_pretrained(self.folder / "stock", save_embedding_layers=False)
            qpeft.attach(model, copy.deepcopy(self.generator))
        if getattr(self.config, "stores_frames", False):
            qpeft.fit_frames(model, [self.batch])
        return model

    def _train(self):
        """Eight steps of AdamW."""
        self.trained = trained(self.model)
        optimizer = torch.optim.AdamW(self.trained, lr=self.variant.lr)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            losses.append(self.model(**self.batch).loss)
            losses[-1].backward()
            optimizer.step()
        losses.append(self.model(**self.batch).loss)
        losses[-1].backward()
        self.first_loss = losses[0].item()
        self.last_loss = losses[-1].item()

    @property
    def compact(self):
        return self.folder / "compact"

    @property
    def exported(self):
        return self.folder / "exported"

    @cached_property
    def report(self):
        """Of the export."""
        return qpeft.export(self.model, self.exported)

    def load_exported(self):
        """By stock PEFT."""
        assert self.report
        return PeftModel.from_pretrained(copy.deepcopy(self.base), self.exported).eval()


@pytest.fixture(scope="module")
def lives():
    """Those that were lived, by the name of their row."""
    return {}


@pytest.fixture
def life(request, lives, tmp_path_factory):
    name = request.param
    if name not in lives:
        lives[name] = Life(ROWS[name], tmp_path_factory.mktemp("life"))
    return lives[name]


def every_life(condition=lambda variant: True):
    """For each row whose variant meets the condition; all tests of a row run in one process."""
    rows = [
        pytest.param(
            name,
            marks=[pytest.mark.xdist_group(name), *long_if_second(name.partition(":")[0])],
        )
        for name, row in ROWS.items()
        if condition(row.variant)
    ]
    return pytest.mark.parametrize("life", rows, indirect=True)


@every_life()
def test_plan_predicts_what_is_trained_and_stored(life):
    plan = life.plan
    if plan.target_modules:
        assert sorted(plan.target_modules) == sorted(life.target_names)
    assert plan.trainable == life.model.get_nb_trainable_parameters()[0]
    assert plan.trainable == sum(plan.trainable_parts.values())
    assert plan.stored_bytes == bytes_of(life.compact)


@every_life()
def test_untrained_adapter_keeps_the_outputs(life):
    if life.variant.starts_at_base:
        assert torch.equal(life.start_logits, life.untrained_logits)
    else:
        assert_close(life.start_logits, life.untrained_logits, atol=5e-2, rtol=0)


@every_life()
def test_training_lowers_the_loss_with_every_parameter(life):
    assert life.last_loss < life.first_loss
    assert all(parameter.grad.any() for parameter in life.trained)


@every_life()
def test_loaded_adapter_has_the_same_logits(life):
    loaded = qpeft.load(copy.deepcopy(life.base), life.compact)
    assert torch.equal(life.logits(loaded), life.live_logits)
    assert not loaded.training

    # PEFT leaves biases trainable, as those of stock LoRA
    trainable = [name for name, p in loaded.named_parameters() if p.requires_grad]
    assert all(name.endswith("bias") for name in trainable)
    assert not trainable or life.config.bias == "all"


@every_life()
def test_export_is_as_planned_or_refused(life):
    if not life.variant.exports:
        assert life.plan.exported_bytes is None
        with pytest.raises(ConfigError, match="no stock PEFT adapter"):
            qpeft.export(life.model, life.exported)
        return
    assert life.report.max_logit_difference <= 1e-6
    assert life.plan.exported_bytes == bytes_of(life.exported)

    if life.variant.method != "sora":  # whose other parameters are those of LoRA
        assert life.plan.deployed == life.report.n_deployed
        assert life.plan.trainable == life.report.n_trained
    assert torch.equal(life.logits(life.model), life.live_logits)


@every_life(lambda variant: variant.exports)
def test_exported_adapter_has_the_same_logits_in_stock_peft(life):
    stock = life.load_exported()
    assert_close(life.logits(stock), life.live_logits, atol=1e-5, rtol=0)
    if life.variant.merges:  # in float32 a merged weight is rounded
        exact = stock.double()
        expected = life.logits(exact)
        merged = exact.merge_and_unload()
        assert_close(life.logits(merged), expected, atol=1e-9, rtol=0)


@every_life(lambda variant: variant.exports and variant.attached)
def test_exported_host_has_the_tensors_of_the_untrained_host(life):
    def described(folder):
        return {name: (value.shape, value.dtype) for name, value in tensors_of(folder).items()}

    assert life.report
    assert described(life.exported) == described(life.folder / "stock")


@every_life()
def test_merged_adapter_has_the_same_logits_or_is_refused(life):
    model = copy.deepcopy(life.model)
    if not life.variant.merges:
        with pytest.raises((ConfigError, NotImplementedError)):
            model.merge_and_unload()
        assert torch.equal(life.logits(model), life.live_logits)
        return
    merged = model.merge_and_unload()

    assert_close(life.logits(merged), life.live_logits, atol=1e-4, rtol=1e-5)
    assert not any("qpeft" in name for name, _ in merged.named_modules())


# -- families


@pytest.mark.parametrize("name", ON_EVERY_FAMILY)
def test_all_linear_means_the_modules_of_stock_lora(family, base, name):
    options = {**family.options, "target_modules": "all-linear"}
    planned = qpeft.plan(base, VARIANTS[name].make_config(**options))
    stock = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, **options))
    assert sorted(planned.target_modules) == sorted(stock.base_model.targeted_module_names)
