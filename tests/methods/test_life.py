"""The life of an adapter: plan, start, training, compact folder, export, merging.

For every method with every setting that changes the computation, every host of a generator, every
family of models.
"""

import copy

import pytest
import torch
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
from variants import SMALL_GENERATOR, VARIANTS, attached, changed

import qpeft
from qpeft.errors import ConfigError

pytestmark = [
    pytest.mark.filterwarnings("ignore:SoRA"),  # no callback here
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),  # PEFT's, on norms
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


def rows(name, *changes):
    """For the variant with other settings."""
    return {f"{name}, {one}": changed(VARIANTS[name], **one) for one in changes}


def hosts(*configs):
    """Rows for generators over these adapters of PEFT."""
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


QV = {"target_modules": ["q_proj", "v_proj"]}
TOKENS = {"num_virtual_tokens": 4}
ON_LLAMA = {
    **rows(
        "qpa with a network",
        {"rank_pattern": {"q_proj": 1}},
        {"target_modules": ["lm_head"], "r": 4},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"modules_to_save": ["lm_head"], **QV, "chunk_size": 8},
        {"init_lora_weights": "gaussian", "vector_order": "official"},
        *({"feature_source": source} for source in ("qnn_frozen", "free", "random")),
        {"activation": "identity", "center_output": True, "feature_map": "squash"},
    ),
    **rows(
        "qpa",
        {"use_rslora": True},
        {"feature_map": "scaled", "target_modules": ["embed_tokens", "q_proj"]},
    ),
    **rows(
        "quantum_peft",
        {"columns": "first", "construction": "qsd", "r": 5},
        {"construction": "pad", "n_layers": 2},
        {"family": "lie", "lie_map": "cayley", "lie_rank": 2},
        {"entangler": "signs", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
        {"entangler": "none", "share": "type"},
        *({"bits": bits, "share": "type"} for bits in (4, 3, 1)),
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
    ),
    **rows(
        "qaa",
        *({"feature_source": source} for source in ("quadratic", "linear", "givens", "none")),
        *({"feature_source": source, "readout": "last_r"} for source in ("linear", "givens")),
        {"ansatz": "qaa", "train_circuit": False},
        {"target_modules": "all-linear", "carry_norm": True, "n_layers": 2},
        {"target_modules": ["lm_head"], "out_slices": [[2, 5], [7, 8]]},
    ),
    **rows("quic, 1", {"order": 1, "modules_to_save": ["lm_head", "norm"]}),
    **rows("sora", {"rank_pattern": {"q_proj": 2}, "use_rslora": True}),
    **hosts(
        (PrefixTuningConfig, {**TOKENS, "prefix_projection": True, "encoder_hidden_size": 8}),
        (PromptTuningConfig, TOKENS),
        (PromptEncoderConfig, {**TOKENS, "encoder_hidden_size": 8}),
        (
            IA3Config,
            {"target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        ),
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
    ),
}
ON_GPT2 = {
    **{
        name: VARIANTS[name]
        for name in ("qpa", "qpa with dora", "quantum_peft", "qaa", "sora", "bottleneck")
    },
    **{
        name: VARIANTS[name]
        for name in ("quantum_peft in frames", "attached to lora", "attached to ia3")
    },
    **{name: VARIANTS[name] for name in ("cua, output", "quanta, gates")},
    **rows(
        "quantum_peft",
        {"modules_to_save": ["ln_1", "ln_f"]},
        {"frame": "weights", "family": "core"},
    ),
    **rows("qpa with a network", {"bias": "all"}),
    **rows("qaa", {"target_modules": r".*\.1\.attn\.c_proj"}, {"modules_to_save": ["ln_f"]}),
    **rows("sora", {"modules_to_save": ["ln_f"]}),
}
ROWS = [
    *(("gpt2", variant) for variant in ON_GPT2.items()),
    *(("llama", variant) for variant in (VARIANTS | ON_LLAMA).items()),
]


def live_through(base, variant, batch, folder, logits, **changes):
    """`base` is not changed."""
    config, generator = (
        variant.make_config(**changes),
        (variant.generator if variant.attached else None),
    )
    plan = qpeft.plan(base, config, generator)
    model = get_peft_model(copy.deepcopy(base), variant.make_config(**changes)).eval()
    if plan.target_modules:
        assert sorted(plan.target_modules) == sorted(model.base_model.targeted_module_names)
    untrained = logits(model if variant.attached else base, batch)
    if variant.attached:
        model.save_pretrained(folder / "stock", save_embedding_layers=False)
        qpeft.attach(model, copy.deepcopy(generator))
    if getattr(config, "stores_frames", False):
        qpeft.fit_frames(model, [batch])
    if variant.starts_at_base:
        assert torch.equal(logits(model, batch), untrained)
    else:
        torch.testing.assert_close(logits(model, batch), untrained, atol=5e-2, rtol=0)

    assert (
        plan.trainable
        == model.get_nb_trainable_parameters()[0]
        == sum(plan.trainable_parts.values())
    )
    trained, before = [p for p in model.parameters() if p.requires_grad], model(**batch).loss
    optimizer = torch.optim.AdamW(trained, lr=variant.lr)
    for _ in range(8):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    after = model(**batch).loss
    assert after < before
    after.backward()
    assert all(p.grad.any() for p in trained)
    live = logits(model, batch)

    qpeft.save(model, folder / "compact")
    assert plan.stored_bytes == bytes_of(folder / "compact")
    loaded = qpeft.load(copy.deepcopy(base), folder / "compact")
    assert torch.equal(logits(loaded, batch), live)
    assert not loaded.training
    trainable = [name for name, p in loaded.named_parameters() if p.requires_grad]
    assert all(
        name.endswith("bias") for name in trainable
    )  # PEFT leaves biases trainable, as those of stock LoRA
    assert not trainable or config.bias == "all"
    if not variant.merges:
        with pytest.raises((ConfigError, NotImplementedError)):
            model.merge_and_unload()
        assert torch.equal(logits(model, batch), live)
    if not variant.exports:
        assert plan.exported_bytes is None
        with pytest.raises(ConfigError, match="no stock PEFT adapter"):
            qpeft.export(model, folder / "exported")
        return
    report = qpeft.export(model, folder / "exported")
    assert report.max_logit_difference <= 1e-6
    assert plan.exported_bytes == bytes_of(folder / "exported")
    if variant.method != "sora":  # whose other parameters are those of LoRA
        assert plan.deployed == report.n_deployed + plan.trainable_parts.get("other", 0)
    if variant.attached:
        ours, theirs = (tensors_of(folder / name) for name in ("exported", "stock"))
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
            k: (v.shape, v.dtype) for k, v in theirs.items()
        }
    stock = PeftModel.from_pretrained(copy.deepcopy(base), folder / "exported").eval()
    torch.testing.assert_close(logits(stock, batch), live, atol=1e-5, rtol=0)
    assert torch.equal(logits(model, batch), live)
    if variant.merges:  # in float32 a merged weight is rounded
        exact = copy.deepcopy(stock).double()
        expected = logits(exact, batch)
        torch.testing.assert_close(
            logits(exact.merge_and_unload(), batch), expected, atol=1e-9, rtol=0
        )
    for each in (model, stock) if variant.merges else ():
        merged = each.merge_and_unload()
        torch.testing.assert_close(logits(merged, batch), live, atol=1e-4, rtol=1e-5)
        assert not any("qpeft" in name for name, _ in merged.named_modules())


@pytest.mark.parametrize(
    ("base", "variant"), ROWS, ids=[f"{base}: {name}" for base, (name, _) in ROWS]
)
def test_adapter_from_plan_to_export(request, base, variant, ids, adapters, tmp_path):
    base = request.getfixturevalue(base)
    live_through(base, variant[1], {"input_ids": ids, "labels": ids}, tmp_path, adapters.logits)


@pytest.mark.parametrize("name", ["qpa with a network", "quantum_peft", "qaa", "bottleneck"])
def test_every_family_of_models(family, base, batch, adapters, tmp_path, name):
    live_through(base, VARIANTS[name], batch, tmp_path, adapters.logits, **family.options)
    config = VARIANTS[name].make_config(**family.options, target_modules="all-linear")
    stock = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, target_modules="all-linear", **family.options)
    )
    assert sorted(qpeft.plan(base, config).target_modules) == sorted(
        stock.base_model.targeted_module_names
    )
