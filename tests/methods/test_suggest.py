"""`qpeft.suggest`: the best measured adapter within a budget."""

import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig

import qpeft
from qpeft.core.meta_model import on_meta
from qpeft.errors import CheckpointError, ConfigError
from qpeft.methods import counting
from qpeft.methods import suggest as suggest_module
from qpeft.methods.counting import Counts
from qpeft.methods.evidence import Design, Evidence

BASE = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32)  # 512 parameters per rank of LoRA
LLAMA = LlamaConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
)
EVIDENCE = suggest_module.read_evidence()
BATCHES = [{"input_ids": torch.arange(20)[None]}]


def design(label, method, settings, *losses, base=(4.0, 5.0), budget=5000, vary=None, values=()):
    results = [
        {
            "base": "b",
            "base_parameters": 10,
            "data": data,
            "steps": 1,
            "trainable": 9,
            "seeds": 5,
            "loss": loss,
            "low": loss - 0.02,
            "high": loss + 0.02,
            "share": (start - loss) / (start - 3.0),
        }
        for loss, start, data in zip(losses, base, "de", strict=True)
    ]
    return Design(
        label, method, settings, budget, vary, [*values], {"": 0.01, "b": 0.02}, None, results
    )


DESIGNS = [
    design("Uni-LoRA, 64", "uni_lora", {"r": 4, "theta_d_length": 64}, 3.5, 4.5),
    design("Quantum-PEFT, L=1, r=8", "quantum_peft", {"r": 8, "n_layers": 1}, 3.2, 4.1),
    design("LoRA r=1", "lora", {"r": 1, "lora_alpha": 1}, 3.2, 4.0),
    design("LoRA r=8", "lora", {"r": 8, "lora_alpha": 8}, 3.0, 3.0),
]
IN_FRAMES = {"frame": "gradient", "share": "type", "n_layers": 1, "frame_rank": 4, "r": 2}
FRAMED = design("framed", "quantum_peft", {**IN_FRAMES, "bits": 16, "lambda_bits": 16}, 2.9, 2.9)


@pytest.fixture
def use(monkeypatch):
    """Replaces the evidence."""

    def use(*designs):
        evidence = Evidence("LoRA r=8", list(designs), {"5000": [0.1, 0.02]}, {}, "")
        monkeypatch.setattr(suggest_module, "read_evidence", lambda: evidence)

    use(*DESIGNS)
    return use


@pytest.mark.parametrize(
    "budget, label, trainable",
    [
        ({"parameters": 64}, "Uni-LoRA, 64", 64),
        ({"parameters": 511}, "Quantum-PEFT, L=1, r=8", None),
        ({"parameters": 512}, "LoRA r=1", 512),
        ({"parameters": 10**6}, "LoRA r=8", 8 * 512),
        ({"bytes": 4 * 512}, "LoRA r=1", 512),
    ],
)
def test_best_measured_adapter_within_the_budget_is_suggested(use, budget, label, trainable):
    suggestion = qpeft.suggest(BASE, **budget)
    assert suggestion.label == label
    assert suggestion.plan == qpeft.plan(BASE, suggestion.config)
    assert suggestion.plan.trainable == (trainable or suggestion.plan.trainable)
    assert (
        suggestion.plan.trainable if "parameters" in budget else suggestion.plan.stored_bytes
    ) <= next(iter(budget.values()))


def test_suggestion_shows_its_evidence(use):
    with warnings.catch_warnings(record=True, action="always") as shown:
        suggestion = qpeft.suggest(BASE, parameters=600)
    assert not shown  # not one for each candidate, by PEFT
    assert "10 parameters" in suggestion.notes[0]  # of a smaller base
    assert "lost 2.0% to 10.0% of the best gain" in suggestion.notes[1]
    assert (
        "the evidence ends at 5,000 trainable parameters"
        in qpeft.suggest(BASE, parameters=5001).notes
    )
    assert [row["loss"] for row in suggestion.results] == [3.2, 4.0]
    assert suggestion.share == pytest.approx((0.8 + 0.5) / 2)
    assert suggestion.learning_rate == 0.02
    # the next best, with their own evidence
    assert [one.label for one in suggestion.alternatives] == [
        "Quantum-PEFT, L=1, r=8",
        "Uni-LoRA, 64",
    ]
    assert [one.results[1]["loss"] for one in suggestion.alternatives] == [4.1, 4.5]


def test_suggestion_whose_initial_values_need_gradients_says_so(use):
    settings = {"r": 1, "lora_alpha": 1, "init_lora_weights": "lora_ga"}
    use(design("LoRA-GA r=1", "lora", settings, 3.2, 4.0))
    suggestion = qpeft.suggest(BASE, parameters=600)
    assert "preprocess_loraga before get_peft_model, or it is a plain LoRA" in suggestion.notes[-1]
    assert suggestion.plan.stored_bytes == 2 * 4 * suggestion.plan.trainable


def test_learning_rate_of_uni_lora_grows_with_the_root_of_its_lora(use):
    rates = {"": 0.01, "b": 0.02, "larger": 0.05}
    use(replace(DESIGNS[0], per_lora=128, learning_rates=rates))  # BASE has four times as many
    within = qpeft.suggest(BASE, parameters=64)
    assert within.learning_rate == 0.04
    assert not any("no base of this size" in note for note in within.notes)

    use(replace(DESIGNS[0], per_lora=2, learning_rates=rates))  # 256 times as many
    beyond = qpeft.suggest(BASE, parameters=64)
    assert beyond.learning_rate == 0.05
    assert (
        "no base of this size was measured, so it is the largest that was, 0.05"
        in (beyond.notes[-1])
    )


def test_results_on_the_base_itself_count_alone():
    here, there = DESIGNS[0].results
    both = replace(DESIGNS[0], results=[{**here, "base_parameters": 7}, {**there, "base": "other"}])
    evidence = Evidence("r", [both], {}, {}, "")
    (own,), (every,) = evidence.ranked(7), evidence.ranked(8)

    assert own.share == pytest.approx(0.5)
    assert own.learning_rate == 0.02
    assert every.share == pytest.approx((0.5 + 0.25) / 2)
    assert every.learning_rate == 0.01


def on_large(label, share, **changes):
    """The third of DESIGNS as it was measured on a base above 50 million parameters."""
    row = {**DESIGNS[2].results[0], "base": "large", "base_parameters": 60_000_000, "share": share}
    return replace(DESIGNS[2], label=label, results=[row], budget=10**6, **changes)


def test_results_on_a_large_base_order_the_families_that_have_them_on_such_bases_alone():
    places = {"LoRA r=8": on_large("LoRA r=8, large", 0.3), "LoRA r=1": on_large("first", 0.4)}
    evidence = Evidence("r", DESIGNS, {}, places, "LoRA r=64")

    def labels(parameters, most=math.inf):
        return [design.label for design in evidence.ranked(parameters, most)]

    small = ["LoRA r=8", "LoRA r=1", "Quantum-PEFT, L=1, r=8", "Uni-LoRA, 64"]
    assert labels(50_000_000) == small
    assert labels(50_000_001) == ["first", "LoRA r=8, large", *small[2:]]
    assert labels(50_000_001, most=4_999) == []  # of the small bases, whose places they have

    ranked = evidence.ranked(50_000_001, wanted=8)  # both have 9 there
    assert [design.label for design in ranked] == small
    evidence.large.popitem()
    assert labels(50_000_001) == ["LoRA r=8, large", *small[1:]]


def test_suggestion_for_a_large_base_names_the_base_and_has_its_learning_rate(monkeypatch):
    rates = {"": 0.3, "large": 0.3}
    places = {"LoRA r=1": on_large("as measured", 0.4, learning_rates=rates)}
    evidence = Evidence("r", DESIGNS, {}, places, "LoRA r=64")
    monkeypatch.setattr(suggest_module, "read_evidence", lambda: evidence)
    base = GPT2Config(n_embd=512, n_layer=16, n_head=2, vocab_size=32)
    suggestion = qpeft.suggest(base, parameters=10**6)

    assert suggestion.plan.base_parameters > 50_000_000
    assert [suggestion.label, suggestion.learning_rate] == ["as measured", 0.3]
    assert suggestion.reference == "LoRA r=64"
    assert {one.reference for one in suggestion.alternatives} == {"r"}
    (note,) = [note for note in suggestion.notes if note.startswith("of all adapters only")]
    assert "only as measured were measured on large; their place" in note


@pytest.fixture
def frame_file(tmp_path):
    """Makes a frame file of BASE; returns it and the base."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(BASE).eval()

    def make(target_modules="all-linear"):
        config = qpeft.QuantumPeftConfig(**IN_FRAMES, target_modules=target_modules)
        qpeft.fit_frames(
            get_peft_model(copy.deepcopy(base), config), BATCHES, save_to=tmp_path / "frames"
        )
        return tmp_path / "frames.safetensors", base

    return make


def test_frames_in_a_file_are_not_counted(use, frame_file, tmp_path):
    use(*DESIGNS, FRAMED)
    file, base = frame_file()
    for frames in (None, file):
        suggestion = qpeft.suggest(BASE, bytes=1000, frames=frames)
        assert suggestion.label == "framed"
        assert suggestion.needs_frame_file == (frames is None)
        assert suggestion.plan.stored_bytes == 2 * suggestion.plan.trainable <= 1000
        model = get_peft_model(copy.deepcopy(base), suggestion.config)
        folder = tmp_path / str(suggestion.needs_frame_file)
        assert model.get_nb_trainable_parameters()[0] == suggestion.plan.trainable
        if suggestion.needs_frame_file:
            qpeft.fit_frames(model, BATCHES, save_to=folder / "frames")
        qpeft.save(model, folder / "adapter")
        (tensor,) = load_file(folder / "adapter" / "adapter_model.safetensors").values()
        assert tensor.nbytes == suggestion.plan.stored_bytes + 8  # an int64 hash

    assert suggestion.plan == qpeft.plan(BASE, suggestion.config)
    assert not suggestion.alternatives  # the others take no frame file

    stores = qpeft.suggest(BASE, parameters=suggestion.plan.trainable)
    assert stores.label == "framed"
    assert stores.needs_frame_file is False
    assert stores.plan.stored_bytes > 4 * stores.plan.trainable


def test_frames_of_the_sign_of_the_gradient_can_be_in_a_file_too(use):
    use(replace(FRAMED, settings={"family": "core", "frame": "sign", "r": 2}))
    assert qpeft.suggest(BASE, bytes=400).needs_frame_file


@pytest.mark.parametrize(
    "made, settings",
    [
        ({"target_modules": ["c_fc"]}, {}),
        (
            {},
            {
                "family": "core",
                "frame_rank": 6,
                "r": 6,
                "share": "none",
                "bits": None,
                "lambda_bits": None,
            },
        ),
    ],
    ids=["fewer modules", "core of a larger rank"],
)
def test_frame_file_that_does_not_suit_is_refused(use, frame_file, made, settings):
    use(replace(FRAMED, settings={**FRAMED.settings, **settings}))
    file, base = frame_file(**made)
    assert qpeft.suggest(BASE, parameters=10**6).label == "framed"
    with pytest.raises(ConfigError, match="no measured adapter fits"):
        qpeft.suggest(BASE, parameters=10**6, frames=file)

    base.transformer.h[0].mlp.c_fc.weight.data.mul_(-1)
    for other in (LLAMA, base):
        with pytest.raises(CheckpointError):
            qpeft.suggest(other, parameters=10**6, frames=file)


def test_adapter_far_below_its_measured_size_is_left_out(use):
    larger = [{**result, "trainable": 2000} for result in DESIGNS[2].results]
    use(replace(DESIGNS[2], results=larger), DESIGNS[0])  # LoRA r=1 has 512 here
    assert qpeft.suggest(BASE, parameters=1000).label == "Uni-LoRA, 64"


@pytest.mark.parametrize(
    "asked", [{}, {"parameters": 10, "bytes": 10}, {"parameters": 0}, {"parameters": 63}], ids=str
)
def test_invalid_budget_is_refused(use, asked):
    with pytest.raises(
        ConfigError, match="budget" if asked != {"parameters": 63} else "Uni-LoRA, 64"
    ):
        qpeft.suggest(BASE, **asked)


def test_base_that_cannot_be_counted_is_refused(tmp_path):
    lora = LoraConfig(r=1, target_modules=["c_attn"], task_type="CAUSAL_LM")
    for base in (tmp_path / "nowhere", get_peft_model(GPT2LMHeadModel(BASE), lora)):
        with pytest.raises(ConfigError):
            qpeft.suggest(base, parameters=1000)
        with pytest.raises(ConfigError):
            qpeft.plan(base, lora)


@pytest.mark.parametrize("budget, r", [(511, None), (512, 1), (1300, 2), (5000, 4)])
def test_size_is_the_largest_within_the_budget_of_the_study(use, budget, r):
    use(
        design(
            "varied", "lora", {"lora_alpha": 8}, 3.5, 3.5, budget=budget, vary="r", values=[1, 2, 4]
        )
    )
    if r is None:  # the smallest exceeds it
        with pytest.raises(ConfigError, match="varied, has 512"):
            qpeft.suggest(BASE, parameters=511)
        with pytest.raises(ConfigError, match="varied: its 512 here"):
            qpeft.suggest(BASE, parameters=1000)
    else:
        suggestion = qpeft.suggest(BASE, parameters=10**5)
        assert suggestion.plan.trainable == 512 * r
        assert suggestion.config.r == r


def test_adapters_that_the_caller_refuses_are_left_out(use):
    suggestion = qpeft.suggest(
        BASE, parameters=10**6, refuses=lambda config: "is large" if config.r == 8 else None
    )
    assert suggestion.label == "LoRA r=1"
    with pytest.raises(ConfigError, match="LoRA r=8: never"):
        qpeft.suggest(BASE, parameters=10**6, refuses=lambda config: "never")


# -- counts on few layers

DEEP = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=9,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
)


@pytest.mark.parametrize(
    "settings",
    [
        ("lora", {"lora_alpha": 8, "target_modules": "all-linear"}, "r"),
        ("dora", {"target_modules": ["o_proj"]}, "r"),
        ("fourierft", {"init_weights": True, "target_modules": "all-linear"}, "n_frequency"),
        ("tiny_lora", {"r": 4, "save_projection": False}, "u"),
        ("vera", {"target_modules": ["o_proj"], "save_projection": False}, "r"),
        ("quantum_peft", {"n_layers": 1, "share": "none"}, "r"),
        ("quantum_peft", {"n_layers": 1, "share": "type"}, "r"),
        ("quantum_peft", {"family": "core", "frame": "gradient"}, "r"),
        ("quantum_peft", {"family": "lie", "frame": "gradient", "share": "type"}, "r"),
    ],
    ids=str,
)
def test_sizes_by_few_layers_are_those_of_the_base(settings):
    method, fixed, vary = settings
    model = on_meta(DEEP, "CAUSAL_LM")
    counts = Counts(model, None, shares_frames=True)
    design = Design("any", method, fixed, 5000, vary, [1, 5], {}, None, [])
    for value in design.values:
        at = design.with_value(value)
        _, costs = counts.exact(at)
        assert counts.expected(at) == (costs.trainable, costs.stored_bytes)


def test_whole_base_is_counted_for_suggestions_alone(use, monkeypatch):
    bases = []

    def recorded(base, config):
        bases.append(base)
        return qpeft.plan(base, config)

    monkeypatch.setattr(counting, "plan", recorded)
    with_values = [one for one in EVIDENCE.designs if one.values][::5]
    use(*with_values)
    suggestion = qpeft.suggest(DEEP, parameters=5000)
    whole = [base for base in bases if base.config.num_hidden_layers == 9]

    assert len(whole) == 1 + len(suggestion.alternatives)
    assert len(bases) > 2 * len(whole)


def unlike_layers():
    model = on_meta(DEEP, "CAUSAL_LM")
    model.model.layers[4].mlp.up_proj = nn.Linear(32, 64, bias=True, device="meta")
    return model


@pytest.mark.parametrize("base", [unlike_layers(), on_meta(BASE)], ids=["unlike", "few"])
def test_base_whose_layers_are_few_or_not_alike_is_counted_itself(use, monkeypatch, base):
    bases = []

    def recorded(base, config):
        bases.append(sum(p.numel() for p in base.parameters()))
        return qpeft.plan(base, config)

    monkeypatch.setattr(counting, "plan", recorded)
    use(design("varied", "lora", {}, 3.5, 3.5, vary="r", values=[1, 2]))
    qpeft.suggest(base, parameters=10**5)

    assert {*bases} == {sum(p.numel() for p in base.parameters())}


@pytest.mark.parametrize("budget", [{"parameters": 1300}, {"bytes": 900}], ids=str)
def test_counts_on_few_layers_change_no_suggestion(use, monkeypatch, budget):
    use(*EVIDENCE.designs[::18])
    suggestion = qpeft.suggest(DEEP, **budget)
    monkeypatch.setattr(counting, "_MANY_LAYERS", 100)
    assert qpeft.suggest(DEEP, **budget) == suggestion


# -- adapters for a pool


@pytest.mark.parametrize(
    "settings, is_mixed",
    [({}, True), ({"modules_to_save": ["ln_f"]}, False), ({"use_dora": True}, False)],
    ids=str,
)
def test_adapters_that_a_pool_does_not_mix_are_left_out(use, settings, is_mixed):
    use(design("ours", "quantum_peft", {"r": 1, **settings}, 3.5, 3.5), DESIGNS[3])
    assert qpeft.suggest(BASE, parameters=10**5).label == "LoRA r=8"
    if is_mixed:
        assert qpeft.suggest(BASE, parameters=10**5, mixed_batches=True).label == "ours"
    else:
        with pytest.raises(ConfigError, match="AdapterPool serves"):
            qpeft.suggest(BASE, parameters=10**5, mixed_batches=True)


def test_pool_serves_what_is_suggested_for_mixed_batches(use, tmp_path):
    """Two such adapters in one batch, with the logits that each has alone."""
    use(DESIGNS[1], DESIGNS[3])
    config = qpeft.suggest(BASE, parameters=10**5, mixed_batches=True).config
    torch.manual_seed(0)
    base = GPT2LMHeadModel(BASE).eval()
    ids = torch.arange(8)[None]
    alone = []
    for name in "ab":
        model = get_peft_model(copy.deepcopy(base), copy.deepcopy(config)).eval()
        for parameter in model.base_model.generators.parameters():
            parameter.data.normal_()
        model.base_model.generators.invalidate()
        qpeft.save(model, tmp_path / name)
        alone.append(model(ids).logits[0])
    pool = qpeft.AdapterPool(base, tmp_path)
    both = pool.model(ids.expand(2, -1), adapter_names=pool.place(["a", "b"])).logits

    assert torch.allclose(both, torch.stack(alone), atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


# -- names of modules that depend on the base


def base(model_type, **sizes):
    return on_meta(AutoConfig.for_model(model_type, vocab_size=8, **sizes))


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.mark.parametrize(
    "model, norms, last",
    [
        (on_meta(BASE), ["ln_1", "ln_2", "ln_f"], "transformer.ln_f"),
        # registered before the blocks
        (
            base("opt", **SMALL, ffn_dim=32, word_embed_proj_dim=16),
            ["final_layer_norm", "self_attn_layer_norm"],
            "model.decoder.final_layer_norm",
        ),
        # only those of the embeddings and of the prediction head are outside of blocks
        (base("bert", **SMALL), ["LayerNorm"], "cls.predictions.transform.LayerNorm"),
    ],
    ids=["gpt2", "opt", "bert"],
)
def test_norms_are_those_of_the_base(model, norms, last):
    gains = design("gains", "ln_tuning", {"r": 3}, 3.5, 4.5)
    assert replace(gains, norms="all").settings_for(model) == {"r": 3, "target_modules": norms}
    assert replace(gains, norms="last").settings_for(model) == {"r": 3, "target_modules": [last]}


def test_base_without_such_modules_is_refused():
    gains = replace(design("gains", "ln_tuning", {}, 3.5, 4.5), norms="all")
    with pytest.raises(ConfigError, match="Embedding has no normalization"):
        gains.settings_for(nn.Embedding(2, 2))
