"""Methods on a trained Llama and Grimm's tales. Skipped where the weights are absent."""

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft

LM = {"task_type": "CAUSAL_LM"}
GENERATOR = qpeft.QPAGeneratorConfig(chunk_size=64, hidden=(16, 16, 8))
CASES = {
    "qaa, square": (qpeft.QAAConfig(ansatz="square", **LM), None, 2e-3),
    "qaa, rxyz": (qpeft.QAAConfig(ansatz="rxyz", **LM), None, 2e-3),
    "quantum_peft, lie": (qpeft.QuantumPeftConfig(family="lie", target_modules="all-linear", **LM), None, 2e-3),
    "sora": (qpeft.SoRAConfig(r=4, target_modules="all-linear", shrink_budget=0, **LM), None, 2e-3),
    "bottleneck": (qpeft.BottleneckConfig(bottleneck_size=8, **LM), None, 2e-3),
    "qpa over bottleneck": (qpeft.BottleneckConfig(bottleneck_size=8, **LM), GENERATOR, 2e-3),
    "qpa over prefix": (PrefixTuningConfig(num_virtual_tokens=8, **LM), GENERATOR, 1e-3),
    "qpa over ia3": (IA3Config(**LM), GENERATOR, 5e-4),
    "qpa over loha": (LoHaConfig(r=4, target_modules="all-linear", **LM), GENERATOR, 2e-3),
    "qpa over the head": (LoraConfig(r=4, target_modules=["lm_head"], **LM), GENERATOR, 2e-3),
}


@pytest.fixture
def load(shared):
    """A function that loads the base, and 16 blocks of 128 tokens, int64."""
    folder = shared / "models" / "stories260K"
    text = (shared / "data" / "grimm" / "GrimmsFairyTales.txt").read_text(encoding="utf-8")[20_000:40_000]
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", verbose=False).input_ids[0]
    return lambda: AutoModelForCausalLM.from_pretrained(folder).eval(), ids[: 16 * 128].view(16, 128)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:QPA trains")  # IA3 has few parameters
@pytest.mark.parametrize("case", CASES)
def test_training_reduces_the_loss_of_unseen_text(load, models, adapters, tmp_path, case):
    base, blocks = load
    config, generator, lr = CASES[case]
    seen, unseen = ({"input_ids": part, "labels": part} for part in blocks.split(8))
    model = get_peft_model(base(), config).eval()
    initial = adapters.logits(model, unseen["input_ids"])
    if generator is None:
        assert torch.equal(initial, adapters.logits(base(), unseen["input_ids"]))
    else:
        qpeft.attach(model, generator)
        assert torch.equal(adapters.logits(model, unseen["input_ids"]), initial)
    with torch.no_grad():
        before = model(**unseen).loss.item()
    models.train(model, seen, steps=15, lr=lr)
    with torch.no_grad():
        assert model.eval()(**unseen).loss.item() < before - 0.02
    live = adapters.logits(model, unseen["input_ids"])
    qpeft.save(model, tmp_path / "compact")
    assert torch.equal(adapters.logits(qpeft.load(base(), tmp_path / "compact"), unseen["input_ids"]), live)
    if isinstance(config, (qpeft.QAAConfig, qpeft.BottleneckConfig)):
        return  # stock PEFT has no such adapter
    qpeft.export(model, tmp_path / "exported")
    stock = PeftModel.from_pretrained(base(), tmp_path / "exported").eval()
    torch.testing.assert_close(adapters.logits(stock, unseen["input_ids"]), live, atol=1e-5, rtol=0)
