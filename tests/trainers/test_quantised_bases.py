"""Bases in 8 and 4 bits: exact start, falling loss, export, and SFTTrainer's casts of trainable
parameters.
"""

import pytest
import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig
from variants import VARIANTS

import qpeft
from qpeft.methods import suggest
from trainers import QUIET


def nf4():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


def int8():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True)


def torchao():
    return TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny Llama on disk, wide enough for blocks of 64 values."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 257}
    tiny_models.llama(**sizes).save_pretrained(folder)
    return folder


@pytest.fixture(params=[nf4, int8, torchao], ids=lambda config: config.__name__)
def quantised(request, saved):
    """A function that loads the tiny Llama quantised."""

    def load():
        model = AutoModelForCausalLM.from_pretrained(
            saved, quantization_config=request.param(), device_map={"": "cpu"}
        )
        # an evaluation on a CPU would repack 4-bit weights for good, without a backward
        return model.train()

    return load


@pytest.mark.filterwarnings(
    "ignore:.*inputs will be cast from torch.float32 to float16", "ignore:SoRA"
)
@pytest.mark.parametrize("name", ["qpa with a network", "quantum_peft", "qaa", "sora"])
def test_training_on_a_quantised_base(quantised, name, adapters, ids, tmp_path):
    base = quantised()
    start = adapters.logits(base, ids)
    model = VARIANTS[name].adapt(base)

    assert torch.equal(adapters.logits(model.train(), ids), start)

    before = model(input_ids=ids, labels=ids).loss.item()
    live = adapters.logits(adapters.train(model, ids, steps=8, lr=1e-3).train(), ids)
    assert model(input_ids=ids, labels=ids).loss.item() < before - 1e-3

    qpeft.save(model, tmp_path / "adapter")
    assert torch.equal(
        adapters.logits(qpeft.load(quantised(), tmp_path / "adapter").train(), ids), live
    )

    if name != "qaa":  # which stock PEFT has not
        qpeft.export(model, tmp_path / "exported")
        stock = PeftModel.from_pretrained(quantised(), str(tmp_path / "exported")).train()
        assert stock.peft_config["default"].peft_type == "LORA"
        torch.testing.assert_close(adapters.logits(stock, ids), live, atol=1e-5, rtol=1e-5)


def test_quantised_model_is_counted_as_its_config(quantised, saved, monkeypatch):
    model = quantised()
    config = LoraConfig(target_modules="all-linear", r=4, task_type="CAUSAL_LM")
    assert qpeft.plan(model, config) == qpeft.plan(saved, config)

    evidence = suggest.read_evidence()
    few = evidence._replace(
        designs=[design for design in evidence.designs if design.method == "lora"]
    )
    monkeypatch.setattr(suggest, "read_evidence", lambda: few)

    assert (
        qpeft.suggest(model, parameters=10**5).plan == qpeft.suggest(saved, parameters=10**5).plan
    )


@pytest.mark.parametrize("quantised", [nf4, int8], indirect=True)
@pytest.mark.filterwarnings("ignore:.*inputs will be cast from torch.float32 to float16")
def test_dora_reads_the_dequantised_weights(quantised, adapters, ids):
    stock = get_peft_model(
        quantised(), LoraConfig(target_modules="all-linear", r=2, use_dora=True)
    ).train()
    model = VARIANTS["qpa with a network"].adapt(quantised(), use_dora=True).train()
    torch.testing.assert_close(
        adapters.logits(model, ids), adapters.logits(stock, ids), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("quantised", [nf4], indirect=True)
# trl's own default
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing.* is deprecated:FutureWarning")
def test_generator_stays_float32_under_sft_trainer(quantised, variant, tokenizer, tmp_path):
    """trl casts trainable parameters on a quantized base when it is built; the second run resumes
    before a forward.
    """
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    def run(folder, steps=4, **options):
        changes = {
            "max_steps": steps,
            "lr_scheduler_type": "constant",
            "save_strategy": "steps",
            "save_steps": 2,
        }
        args = trl.SFTConfig(str(tmp_path / folder), **{**QUIET, **changes, "bf16": False})
        rows = [{"prompt": "what colour is the sky ?", "completion": " blue"}] * 4
        model = variant.adapt(quantised()).train()
        trainer = trl.SFTTrainer(
            model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        trainer.train(**options)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, list(model.base_model.generators["default"].parameters())

    losses, unbroken = run("a")

    assert losses[-1] < losses[0]
    assert {p.dtype for p in unbroken} == {torch.float32}
    assert any((p.bfloat16().float() != p).any() for p in unbroken)

    _, resumed = run("b", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert all(torch.equal(p, q) for p, q in zip(unbroken, resumed, strict=True))
