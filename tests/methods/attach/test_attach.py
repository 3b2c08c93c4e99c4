"""`qpeft.attach` with many hosts: unchanged outputs, complete checkpoints, exports that stock PEFT loads, errors."""

import copy
import json
import os

import pytest
import torch
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    AutoPeftModelForCausalLM,
    IA3Config,
    LilyConfig,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PolyConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file

import qpeft
from qpeft.errors import CheckpointError, ConfigError, TiedWeightError

pytestmark = [
    pytest.mark.filterwarnings("ignore:QPA trains"),  # the models are tiny
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),  # PEFT, about RMSNorm
]
LM = {"task_type": "CAUSAL_LM"}
QV = {**LM, "target_modules": ["q_proj", "v_proj"]}
HOSTS = {
    "prefix": PrefixTuningConfig(num_virtual_tokens=4, **LM),
    "prefix with MLP": PrefixTuningConfig(num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=8, **LM),
    "prompt": PromptTuningConfig(num_virtual_tokens=4, **LM),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=8, **LM),
    "ia3": IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"], **LM),
    "loha": LoHaConfig(r=2, **QV),
    "oft": OFTConfig(r=0, oft_block_size=4, **QV),
    "vera": VeraConfig(r=4, target_modules=["q_proj", "o_proj"], **LM),
    "ln tuning": LNTuningConfig(target_modules=["input_layernorm"], **LM),
    "unilora": UniLoraConfig(theta_d_length=64, **QV),  # one vector that all layers share
    "lora": LoraConfig(r=2, **QV),
    "dora": LoraConfig(r=2, use_dora=True, **QV),
    "pissa": LoraConfig(r=2, init_lora_weights="pissa", **QV),
    "lm_head": LoraConfig(r=2, target_modules=["lm_head"], **LM),
    "embedding": LoraConfig(r=2, target_modules=["embed_tokens"], **LM),
    "modules_to_save": LoraConfig(r=2, modules_to_save=["lm_head"], **QV),
    "bias": LoraConfig(r=2, bias="all", target_modules="all-linear", **LM),
    "bottleneck": qpeft.BottleneckConfig(bottleneck_size=4, target_modules=["mlp"], **LM),
}
NOT_STOCK = {"bottleneck"}
PROMPT_HOSTS = {"prefix", "prefix with MLP", "prompt", "p-tuning"}
MERGEABLE = HOSTS.keys() - PROMPT_HOSTS - NOT_STOCK


def small(**settings):
    return qpeft.QPAGeneratorConfig(**{"chunk_size": 16, "hidden": (6, 5), "n_layers": 3, **settings})


def attached(base, host="ia3", **settings):
    config = HOSTS[host] if isinstance(host, str) else host
    return qpeft.attach(get_peft_model(base, copy.deepcopy(config)).eval(), small(**settings))


@pytest.fixture
def trained(llama, ids, adapters):
    """The base, and the attached model after a few steps."""

    def make(host, **settings):
        plain = copy.deepcopy(llama)
        return plain, adapters.train(attached(copy.deepcopy(plain), host, **settings), ids)

    return make


@pytest.mark.parametrize("host", HOSTS)
def test_host_from_attach_to_export(llama, ids, adapters, tmp_path, host):
    plain = copy.deepcopy(llama)
    model = get_peft_model(llama, copy.deepcopy(HOSTS[host])).eval()
    initial = adapters.logits(model, ids)
    assert qpeft.attach(model, small()) is model
    assert torch.equal(adapters.logits(model, ids), initial)
    before = model(input_ids=ids, labels=ids).loss
    before.backward()
    assert all(p.grad.norm() > 0 for p in model.generators.parameters())
    adapters.train(model, ids, steps=8, lr=1e-3)
    assert model(input_ids=ids, labels=ids).loss < before
    live = adapters.logits(model, ids)

    plan = qpeft.plan(plain, HOSTS[host], small())
    assert plan.trainable == model.get_nb_trainable_parameters()[0]
    assert plan.deployed == sum(model.binding("default").sizes) + plan.trainable_parts["other"]
    qpeft.save(model, tmp_path / "compact")
    assert plan.stored_bytes == bytes_of(tmp_path / "compact")
    again = qpeft.load(copy.deepcopy(plain), tmp_path / "compact")
    assert torch.equal(adapters.logits(again, ids), live)
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training
    if host in NOT_STOCK:
        assert plan.exported_bytes is None
        return

    report = qpeft.export(model, tmp_path / "exported")
    assert plan.exported_bytes == bytes_of(tmp_path / "exported") == qpeft.plan(plain, HOSTS[host]).stored_bytes
    exported = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "exported").eval()
    assert "Attached" not in type(exported).__name__
    torch.testing.assert_close(adapters.logits(exported, ids), live, atol=1e-6, rtol=0)
    assert report.max_logit_difference <= 1e-6
    assert report.n_generated == sum(model.binding("default").sizes)
    stock = get_peft_model(plain, copy.deepcopy(HOSTS[host]))
    stock.save_pretrained(tmp_path / "stock", save_embedding_layers=False)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("exported", "stock"))
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}

    adapters.train(model.train(), ids, steps=1)  # an export does not prevent training
    assert not torch.equal(adapters.logits(model, ids), live)
    if host in MERGEABLE:
        live = adapters.logits(model, ids)
        merged = model.merge_and_unload()
        torch.testing.assert_close(adapters.logits(merged, ids), live, atol=1e-5, rtol=1e-5)
        assert not any("qpeft" in name for name, _ in merged.named_modules())


@pytest.mark.parametrize("host", ["unilora", "lora", "ia3"])
def test_adapter_is_disabled_after_a_backward_pass(trained, ids, adapters, host):
    _, model = trained(host)
    live = adapters.logits(model, ids)
    model(input_ids=ids, labels=ids).loss.backward()
    with model.disable_adapter():
        assert not torch.equal(adapters.logits(model, ids), live)
    assert torch.equal(adapters.logits(model, ids), live)
    model(input_ids=ids, labels=ids).loss.backward()


def test_host_that_needs_task_ids_is_exported_with_a_probe(llama, ids, adapters, tmp_path):
    model = attached(llama, PolyConfig(r=2, n_tasks=2, n_skills=2, n_splits=2, **QV))
    with pytest.raises(ConfigError, match=r"the built-in probe \(task_ids .*; give its inputs: qpeft.export"):
        qpeft.export(model, tmp_path / "exported")
    probe = {"input_ids": ids, "task_ids": torch.zeros(len(ids), dtype=torch.long)}
    assert qpeft.export(model, tmp_path / "exported", probe=probe).max_logit_difference == 0


def bytes_of(folder):
    """Of the tensors of a folder, without the fingerprint."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return sum(t.numel() * t.element_size() for name, t in tensors.items() if not name.endswith("fingerprint"))


def test_initial_values_are_saved_except_for_raw(trained, tmp_path):
    sizes = {}
    for mode in ("residual", "raw"):
        _, model = trained("ia3", init_mode=mode)
        qpeft.save(model, tmp_path / mode)
        tensors = load_file(tmp_path / mode / "adapter_model.safetensors")
        sizes[mode] = sum(t.numel() for name, t in tensors.items() if not name.endswith("fingerprint"))
    n_trained = sum(p.numel() for p in model.generators.parameters())
    assert sizes == {"residual": n_trained + sum(model.binding("default").sizes), "raw": n_trained}


def test_other_trained_tensors_are_saved(trained, tmp_path):
    _, model = trained("modules_to_save")
    qpeft.save(model, tmp_path / "compact")
    saved = load_file(tmp_path / "compact" / "adapter_model.safetensors")
    others = {name: tensor for name, tensor in saved.items() if name.startswith("beside.")}
    assert any(torch.equal(t, model.get_output_embeddings().modules_to_save["default"].weight) for t in others.values())


def test_shared_tensors_are_saved_once(trained, tmp_path):
    _, model = trained("vera")
    qpeft.save(model, tmp_path / "compact")
    others = [k for k in load_file(tmp_path / "compact" / "adapter_model.safetensors") if k.startswith("beside.")]
    assert len(others) == 2  # A and B, of all layers


def test_two_adapters_switch_and_are_deleted(llama, ids, adapters):
    model = attached(llama, "ia3")
    model.add_adapter("other", IA3Config(target_modules=["k_proj"], feedforward_modules=[], **LM))
    qpeft.attach(model, small(seed=1), "other")
    assert not any(p.requires_grad for p in model.generators["other"].parameters())
    first = adapters.logits(adapters.train(model, ids), ids)
    model.set_adapter("other")
    assert not any(p.requires_grad for p in model.generators["default"].parameters())
    second = adapters.logits(adapters.train(model, ids), ids)
    assert not torch.equal(first, second)
    model.set_adapter("default")
    assert torch.equal(adapters.logits(model, ids), first)
    model.delete_adapter("other")
    assert list(model.generators) == ["default"]
    assert torch.equal(adapters.logits(model, ids), first)
    with model.disable_adapter():
        without = adapters.logits(model, ids)
    assert torch.equal(adapters.logits(model.unload(), ids), without)


@pytest.mark.parametrize("first", ["lora", "modules_to_save", "bias"])
def test_load_adapter_under_another_name(trained, ids, adapters, tmp_path, first):
    plain, model = trained("modules_to_save")
    qpeft.save(model, tmp_path / "compact")
    other = attached(plain, HOSTS[first])
    other.load_adapter(tmp_path / "compact", "second")
    other.set_adapter("second")
    assert torch.equal(adapters.logits(other, ids), adapters.logits(model, ids))


def test_lily_shares_tensors_also_as_second_adapter(llama, ids, adapters, tmp_path):
    host = LilyConfig(r=2, **QV)
    model = adapters.train(attached(copy.deepcopy(llama), host), ids)
    live = adapters.logits(model, ids)
    qpeft.save(model, tmp_path / "compact")
    model.load_adapter(tmp_path / "compact", "second")
    model.set_adapter("second")
    assert torch.equal(adapters.logits(model, ids), live)
    first, last = (layer.self_attn.q_proj for layer in model.get_base_model().model.layers)
    assert first.lily_B["second"] is last.lily_B["second"]
    stock = get_peft_model(llama, host)
    stock.add_adapter("second", host)  # where PEFT does not share them
    made = qpeft.attach(stock, small(), "second").binding("second")
    assert made.sizes == model.binding("default").sizes


def test_replicated_layers(llama, ids, adapters, tmp_path):
    """PEFT replicates the layers of the model it finds, also for a second adapter, whose neighbour loses its layers."""
    host = LoraConfig(r=2, layer_replication=[[0, 1], [0, 2]], **QV)
    model = adapters.train(attached(copy.deepcopy(llama), host), ids)
    live = adapters.logits(model, ids)
    qpeft.export(model, tmp_path / "exported")
    qpeft.save(model, tmp_path / "compact")
    exported = PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / "exported").eval()
    torch.testing.assert_close(adapters.logits(exported, ids), live, atol=1e-6, rtol=0)
    assert torch.equal(adapters.logits(qpeft.load(llama, tmp_path / "compact"), ids), live)
    for add in (lambda: model.add_adapter("b", host), lambda: model.load_adapter(tmp_path / "compact", "b")):
        with pytest.raises(ConfigError, match="layer_replication replaces the layers of the base model"):
            add()
    assert torch.equal(adapters.logits(model, ids), live)
    with pytest.raises(TiedWeightError, match="which merging would change as well"):
        model.merge_adapter()


def test_second_adapter_of_a_host_that_freezes_all_adapters(llama, ids, adapters):
    host = TinyLoraConfig(**QV)
    model = adapters.train(attached(llama, host), ids)
    before = adapters.logits(model, ids)
    model.add_adapter("second", host)
    assert torch.equal(adapters.logits(model, ids), before)


def test_load_adapter_of_a_damaged_folder_raises(trained, tmp_path):
    plain, model = trained("lora")
    qpeft.save(model, tmp_path / "compact")
    file = tmp_path / "compact" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "host": {**config["host"], "target_modules": 5}}))
    other = attached(plain, HOSTS["lora"])
    with pytest.raises(CheckpointError, match=r"damaged adapter_config\.json|adapter_config\.json is damaged"):
        other.load_adapter(tmp_path / "compact", "second")
    assert list(other.peft_config) == ["default"]


def test_pipe_instead_of_weights_raises(trained, tmp_path):
    plain, model = trained("lora")
    qpeft.save(model, tmp_path / "compact")
    weights = tmp_path / "compact" / "adapter_model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(CheckpointError, match="has no file adapter_model"):
        attached(plain, HOSTS["lora"]).load_adapter(tmp_path / "compact", "second")


@pytest.mark.parametrize("host", ["lora", "modules_to_save"])
def test_folder_of_a_second_adapter(llama, ids, adapters, tmp_path, host):
    plain = copy.deepcopy(llama)
    model = attached(llama, host)
    model.add_adapter("b", LoraConfig(r=3, modules_to_save=HOSTS[host].modules_to_save, **QV))
    qpeft.attach(model, small(), "b")
    model.set_adapter("b")
    adapters.train(model, ids)
    qpeft.save(model, tmp_path / "both")
    again = qpeft.load(plain, tmp_path / "both" / "b")
    assert torch.equal(adapters.logits(again, ids), adapters.logits(model, ids))


@pytest.mark.parametrize("name", ["0", "layers", "weight", "q_proj"])
def test_adapter_named_like_a_module(llama, ids, adapters, tmp_path, name):
    plain = copy.deepcopy(llama)
    model = get_peft_model(llama, copy.deepcopy(HOSTS["modules_to_save"]), adapter_name=name)
    adapters.train(qpeft.attach(model, small()), ids)
    qpeft.save(model, tmp_path / "compact")
    folder = tmp_path / "compact" / name
    others = [k for k in load_file(folder / "adapter_model.safetensors") if k.startswith("beside.")]
    assert len(others) == 1  # the trained head
    assert torch.equal(adapters.logits(qpeft.load(plain, folder), ids), adapters.logits(model, ids))


@pytest.mark.parametrize("host", ["ia3", "prefix", "prompt", "lora", "bottleneck"])
@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_classifier_round_trip(llama, ids, adapters, tmp_path, host, task):
    from transformers import LlamaForSequenceClassification, LlamaForTokenClassification

    made = LlamaForSequenceClassification if task == "SEQ_CLS" else LlamaForTokenClassification
    llama.config.pad_token_id = 0
    base = made(llama.config).eval()
    if (host, task) in (("prefix", "TOKEN_CLS"), ("prompt", "TOKEN_CLS")):
        pytest.skip("PEFT puts no prompt before a token classifier of this kind")
    plain, config = copy.deepcopy(base), copy.deepcopy(HOSTS[host])
    config.task_type = task
    model = qpeft.attach(get_peft_model(base, config), small())
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(input_ids=ids).logits.square().mean().backward()
    optimiser.step()
    qpeft.save(model.eval(), tmp_path / "compact")
    again = qpeft.load(plain, tmp_path / "compact")
    assert torch.equal(adapters.logits(again, ids), adapters.logits(model, ids))
    model.load_adapter(tmp_path / "compact", "default")


@pytest.mark.filterwarnings("ignore:.*pooler.*:UserWarning")
def test_export_of_a_head_with_several_layers(ids, adapters, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    base = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).eval()
    plain = copy.deepcopy(base)
    config = LoHaConfig(r=2, target_modules=["query"], modules_to_save=["pooler"], task_type="SEQ_CLS")
    model = qpeft.attach(get_peft_model(base, config), small()).eval()
    qpeft.export(model, tmp_path / "exported")
    stock = PeftModel.from_pretrained(plain, tmp_path / "exported").eval()
    torch.testing.assert_close(adapters.logits(stock, ids), adapters.logits(model, ids), atol=1e-6, rtol=0)


def test_half_precision_round_trip(llama, ids, adapters, tmp_path):
    base = llama.to(torch.bfloat16)
    plain, option = copy.deepcopy(base), {"autocast_adapter_dtype": False}
    model = qpeft.attach(get_peft_model(base, copy.deepcopy(HOSTS["lora"]), **option), small())
    qpeft.save(adapters.train(model, ids), tmp_path / "compact")
    again = qpeft.load(plain, tmp_path / "compact", **option)
    assert torch.equal(adapters.logits(again, ids), adapters.logits(model, ids))


def test_stock_adapters_on_the_same_model_are_saved_as_by_peft(llama, ids, adapters, tmp_path):
    model = attached(llama, "lora")
    model.add_adapter("plain", LoraConfig(r=3, **QV))
    model.save_pretrained(tmp_path / "both")
    assert "generator.fingerprint" in load_file(tmp_path / "both" / "adapter_model.safetensors")
    assert all("lora" in key for key in load_file(tmp_path / "both" / "plain" / "adapter_model.safetensors"))


def test_tied_head_is_merged_only_when_untied(gpt2, ids, adapters):
    model = adapters.train(attached(gpt2, "lm_head"), ids)
    live = adapters.logits(model, ids)
    with pytest.raises(TiedWeightError, match="untie_lm_head"):
        model.merge_and_unload()
    with pytest.raises(TiedWeightError, match="untie_lm_head"):
        model.merge_adapter()
    qpeft.untie_lm_head(model)
    torch.testing.assert_close(adapters.logits(model.merge_and_unload(), ids), live, atol=1e-5, rtol=1e-5)


def test_gradient_equals_the_chain_rule(llama, ids):
    """With a stock adapter at the same values, d loss/d phi = (d w/d phi)^T (d loss/d w)."""
    model = attached(llama, "loha")
    stock = copy.deepcopy(model)
    with stock.binding("default").as_parameters():
        parameters = [slot.owner._parameters[slot.name].requires_grad_(True) for slot in stock.binding("default").slots]
        stock._handles["default"].remove()
        gradients = torch.autograd.grad(stock(input_ids=ids, labels=ids).loss, parameters)
    generator = model.generators["default"]
    expected = torch.autograd.grad(
        generator(), list(generator.parameters()), torch.cat([g.flatten() for g in gradients])
    )
    model(input_ids=ids, labels=ids).loss.backward()
    for parameter, gradient in zip(generator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)


def merged(model):
    model.merge_adapter()
    return model


def with_a_shared_tensor(model):
    first, second = (layer.self_attn.v_proj.ia3_l for layer in model.get_base_model().model.layers)
    second["default"] = first["default"]
    return model


def with_init(model, init):
    model.peft_config["default"].init_lora_weights = init
    return model


def peft_model(base, host):
    return get_peft_model(base, copy.deepcopy(HOSTS[host] if isinstance(host, str) else host))


PROMPTS_IN_LAYERS = AdaptionPromptConfig(adapter_len=2, adapter_layers=1, **LM)
ERRORS = {
    "LlamaForCausalLM has no adapter; give the PeftModel": lambda base: base,
    "generated already": attached,
    "no tensor of adapter 'default' is trainable": lambda base: peft_model(base, "lora").requires_grad_(False),
    "no trainable adapter parameters found; attach": lambda base: peft_model(base, PROMPTS_IN_LAYERS),
    "'loftq' changes the base model in a way that": lambda base: with_init(peft_model(base, "lora"), "loftq"),
    "'pissa_niter_1' changes the base": lambda base: with_init(peft_model(base, "lora"), "pissa_niter_1"),
    "AdaLoRA": lambda base: peft_model(base, AdaLoraConfig(total_step=10, **QV)),
    r"IA3 shares .*layers\.1.* between layers": lambda base: with_a_shared_tensor(peft_model(base, "ia3")),
    "coft": lambda base: peft_model(base, OFTConfig(r=0, oft_block_size=4, coft=True, **QV)),
    "unmerge_adapter": lambda base: merged(peft_model(base, "lora")),
}


class TestErrors:
    @pytest.mark.parametrize("message", ERRORS)
    def test_attach(self, llama, message):
        model = ERRORS[message](llama)
        with pytest.raises(ConfigError, match=message):
            qpeft.attach(model, small())

    def test_unknown_adapter(self, llama):
        with pytest.raises(ConfigError, match="no adapter 'x'; it has default"):
            qpeft.attach(peft_model(llama, "ia3"), small(), "x")

    def test_attach_to_a_generated_adapter(self, llama, adapters):
        with pytest.raises(ConfigError, match="generated already"):
            qpeft.attach(adapters.qpa(llama), small())

    @pytest.mark.parametrize("config", [{"budget": 0.5}, qpeft.QPAConfig()])
    def test_config_that_is_not_a_generators(self, llama, config):
        with pytest.raises(ConfigError, match="attach takes a QPAGeneratorConfig or another registered"):
            qpeft.attach(peft_model(llama, "lora"), config)

    def test_tied_tensor(self, llama):
        base = type(llama)(type(llama.config)(**{**llama.config.to_dict(), "tie_word_embeddings": True}))
        config = LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True, **LM)
        with pytest.raises(ConfigError, match=r"Lora shares .* between layers"):
            qpeft.attach(get_peft_model(base, config), small())

    def test_failed_load_changes_nothing(self, trained, tmp_path):
        from safetensors.torch import save_file

        plain, model = trained("lora")
        qpeft.save(model, tmp_path / "compact")
        weights = tmp_path / "compact" / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(weights).items() if "initial" not in k}, weights)
        config = weights.with_name("adapter_config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), "weights_sha256": None}))
        other = attached(copy.deepcopy(plain), "lora")
        with pytest.raises(CheckpointError, match="missing"):
            other.load_adapter(tmp_path / "compact", "second")
        assert list(other.peft_config) == ["default"]
        with pytest.raises(CheckpointError, match="missing"):
            qpeft.load(plain, tmp_path / "compact")
        assert not any("lora" in name for name, _ in plain.named_modules())

    @pytest.mark.parametrize("init", ["pissa", "olora"])
    def test_second_adapter_that_changes_the_base(self, trained, ids, adapters, tmp_path, init):
        plain, model = trained(LoraConfig(r=2, init_lora_weights=init, **QV))
        qpeft.save(model, tmp_path)
        model = qpeft.load(plain, tmp_path)
        before = adapters.logits(model, ids)
        with pytest.raises(ConfigError, match=f"'{init}' changes the base model"):
            model.load_adapter(tmp_path, "second")
        assert torch.equal(adapters.logits(model, ids), before)

    def test_weighted_sum(self, llama):
        with pytest.raises(ConfigError, match=r"qpeft\.export"):
            attached(llama, "lora").add_weighted_adapter(["default"], [1.0], "sum")

    def test_invalid_setting_in_a_folder(self, trained, tmp_path):
        plain, model = trained("ia3")
        qpeft.save(model, tmp_path / "compact")
        config = tmp_path / "compact" / "adapter_config.json"
        config.write_text(config.read_text().replace('"n_layers": 3', '"n_layers": 0'))
        with pytest.raises(
            CheckpointError, match="n_layers must be at least 1, got 0; if it was edited, restore the original"
        ):
            qpeft.load(plain, tmp_path / "compact")

    def test_too_small_a_budget_keeps_the_stock_adapter(self, llama, ids, adapters):
        model = get_peft_model(llama, copy.deepcopy(HOSTS["lora"])).eval()
        before = adapters.logits(model, ids)
        with pytest.raises(ConfigError, match="too small"):
            qpeft.attach(model, qpeft.QPAGeneratorConfig(budget=5))
        assert torch.equal(adapters.logits(adapters.train(model, ids, steps=0), ids), before)
        assert any(p.requires_grad for p in model.parameters())

    @pytest.mark.parametrize("load", [PeftModel.from_pretrained, lambda _, folder: load_auto(folder)])
    def test_peft_alone_cannot_load_a_compact_checkpoint(self, trained, tmp_path, load, monkeypatch):
        plain, model = trained("ia3")
        plain.save_pretrained(tmp_path / "base")
        model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        model.generated_config("default").base_model_name_or_path = str(tmp_path / "base")
        qpeft.save(model, tmp_path / "compact")
        with pytest.raises(ConfigError, match=r"qpeft\.load"):
            load(plain, tmp_path / "compact")

    def test_other_settings(self, trained, llama, tmp_path):
        plain, model = trained("ia3")
        qpeft.save(model, tmp_path / "compact")
        with pytest.raises(CheckpointError, match="other settings than this adapter has: n_layers, seed"):
            attached(plain, "ia3", n_layers=4, seed=2).load_adapter(tmp_path / "compact", "default")

    def test_stock_folder(self, trained, llama, tmp_path):
        plain, _ = trained("ia3")
        get_peft_model(copy.deepcopy(plain), copy.deepcopy(HOSTS["ia3"])).save_pretrained(tmp_path / "stock")
        with pytest.raises(CheckpointError, match="contains no attached adapter"):
            attached(plain, "ia3").load_adapter(tmp_path / "stock", "default")

    @pytest.mark.parametrize(
        ("host", "change"),
        [
            ("prompt", {"hidden_size": 32}),
            ("prefix", {"head_dim": 16}),
            ("prefix", {"num_hidden_layers": 3}),
            ("ia3", {"intermediate_size": 32}),
            ("ia3", {"num_hidden_layers": 3}),
            ("lora", {"hidden_size": 32}),
        ],
    )
    def test_another_base(self, trained, llama, tmp_path, host, change):
        _, model = trained(host)
        qpeft.save(model, tmp_path / "compact")
        other = type(llama)(copy.deepcopy(llama.config).__class__(**{**llama.config.to_dict(), **change}))
        with pytest.raises(CheckpointError, match="another base model"):
            qpeft.load(other, tmp_path / "compact")


def load_auto(folder):
    return AutoPeftModelForCausalLM.from_pretrained(folder)
