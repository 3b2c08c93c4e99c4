"""SoRA over bases in 8 and 4 bits: exact start, training, export, merging; torchao's cannot be merged into."""

import pytest
import tiny_models
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

import qpeft
from qpeft.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.*inputs will be cast from torch.float32 to float16")


def nf4():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def int8():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True)


def torchao():
    return TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())


@pytest.fixture(params=[nf4, int8, torchao], ids=lambda config: config.__name__)
def load(request, tmp_path_factory):
    """A function that loads a tiny Llama quantised."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.llama(hidden_size=64, intermediate_size=128, num_key_value_heads=2).save_pretrained(folder)
    options = {"quantization_config": request.param(), "device_map": {"": "cpu"}}
    # in evaluation a CPU would repack 4-bit weights for good, without a backward
    return lambda: AutoModelForCausalLM.from_pretrained(folder, **options).train()


@pytest.mark.long
def test_start_training_and_export(load, adapters, ids, tmp_path):
    base = load()
    start = adapters.logits(base, ids)
    model = get_peft_model(base, qpeft.SoRAConfig(r=4, target_modules="all-linear", sparse_lambda=0.9)).train()
    assert torch.equal(adapters.logits(model, ids), start)
    optimiser = torch.optim.AdamW(qpeft.param_groups(model, lr=0.02))
    qpeft.SoRACallback.attach(optimiser, model)
    before = model(input_ids=ids, labels=ids).loss.item()
    for _ in range(8):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    assert model(input_ids=ids, labels=ids).loss.item() < before - 1e-2
    assert any((gate == 0).any() for _, _, gate in model.base_model.gates())
    live = adapters.logits(model, ids)
    qpeft.export(model, tmp_path / "out")
    stock = PeftModel.from_pretrained(load(), str(tmp_path / "out")).train()
    torch.testing.assert_close(adapters.logits(stock, ids), live, atol=2e-5, rtol=1e-5)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Merge lora module to .-bit linear may get different generations")
def test_merged_as_the_stock_lora_is_or_refused(load, adapters, ids, request, tmp_path):
    def make():
        torch.manual_seed(0)
        model = get_peft_model(load(), qpeft.SoRAConfig(r=4, shrink_budget=0)).train()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.3)
            for _, _, gate in model.base_model.gates():
                gate[0] = 0
        return model

    model = make()
    if "torchao" in request.node.name:
        with pytest.raises(ConfigError, match="quantized by torchao"):
            model.merge_adapter()
        return
    qpeft.export(make(), tmp_path / "out")  # of a model that never ran
    stock = PeftModel.from_pretrained(load(), str(tmp_path / "out")).train()
    with model.disable_adapter():
        change = (adapters.logits(model, ids) - adapters.logits(stock, ids)).abs().max()
    model.merge_adapter()
    stock.merge_adapter()
    assert (adapters.logits(model, ids) - adapters.logits(stock, ids)).abs().max() < 0.02 * change
