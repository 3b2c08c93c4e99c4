"""Rows A1 and A2 of issue 67: others write into the trained parameters, and every pass sees it.

PyTorch's version counter does not record writes through `.data`. The expected values are those of
a model that has the same parameters by operations which it does record.
"""

import copy

import pytest
import torch
from families import FAMILIES
from tiny_models import gpt2
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from variants import VARIANTS, Variant, move, trained

import qpeft
from qpeft.core.binding import Binding
from qpeft.core.generator_holder import holder_of
from qpeft.errors import CheckpointError, ConfigError, QpeftWarning

pytestmark = pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
METHODS = ["qpa", "quantum_peft", "sora", "quic, 1", "attached to lora"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# the first variant of each method, and one with indices of its own
FIRST = [*{name.partition(",")[0]: name for name in reversed(VARIANTS)}.values(), "givens"]
AVERAGED = VARIANTS | {"givens": Variant("qaa", qpeft.QAAConfig, {"feature_source": "givens"})}


@pytest.fixture(params=METHODS)
def make(llama, request):
    """The adapter at other values than its initial ones, always the same."""

    def adapted():
        torch.manual_seed(0)  # of PEFT's own initial values, below `attach`
        return move(VARIANTS[request.param].adapt(copy.deepcopy(llama))).to(DEVICE)

    return adapted


@pytest.fixture
def batch(ids):
    return {"input_ids": ids.to(DEVICE), "labels": ids.to(DEVICE)}


def assert_sees_its_parameters(model, make, batch):
    expected = make()
    expected.load_state_dict(model.state_dict())
    for each in (model, expected):
        each.zero_grad()
    losses = [each(**batch).loss for each in (model, expected)]

    assert torch.equal(*losses)

    for parameter in trained(model):
        parameter.data *= 2  # as an average that is swapped out before the backward pass
    for loss in losses:
        loss.backward()
    for mine, other in zip(trained(model), trained(expected), strict=True):
        assert torch.equal(mine.grad, other.grad)  # of stock LoRA they would mix both values
        mine.data /= 2
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected(**batch).logits)


@pytest.mark.parametrize("make", METHODS[:4], indirect=True)
def test_a1_reference_adapter_has_the_copied_values(make, batch):
    """As trl's trainers make the reference model of an adapter that was trained before.

    They evaluate it first. Some call only the layers below the head, without the model's hooks.
    """
    model = make()
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default" in name:
            model.get_parameter(name.replace(".default", ".ref")).data.copy_(parameter.data)
    model.set_adapter("ref")
    with torch.no_grad():
        below_the_head = model.get_base_model().model(batch["input_ids"])[0]
        of_reference = model(**batch).logits
        model.set_adapter("default")
        assert torch.equal(of_reference, model(**batch).logits)
        expected = make()(**batch, output_hidden_states=True)

    assert torch.equal(of_reference, expected.logits)
    assert torch.equal(below_the_head, expected.hidden_states[-1])


def test_a2_averages_are_evaluated_while_they_are_swapped_in(
    make, llama, batch, adapters, tmp_path
):
    """By a copy, as accelerate and averaging callbacks do it, and by other tensors."""
    model = make()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        adapters.train(model, batch, steps=1, lr=1e-2)
        averaged.update_parameters(model)

    assert_sees_its_parameters(averaged.module, make, batch)

    qpeft.save(averaged.module, tmp_path)
    saved = qpeft.load(copy.deepcopy(llama).to(DEVICE), tmp_path)
    assert torch.equal(adapters.logits(saved, batch), adapters.logits(averaged.module, batch))

    live = adapters.logits(model, batch)
    kept = [p.data.clone() for p in trained(model)]
    for parameter, average in zip(trained(model), trained(averaged.module), strict=True):
        parameter.data.copy_(average)
    merged = adapters.logits(copy.deepcopy(model).merge_and_unload(), batch)

    assert_sees_its_parameters(model, make, batch)
    torch.testing.assert_close(merged, adapters.logits(model, batch), atol=1e-4, rtol=1e-4)
    assert not torch.equal(merged, live)

    for parameter, value in zip(trained(model), kept, strict=True):
        parameter.data = value
    assert torch.equal(adapters.logits(model, batch), live)


def test_a2_average_that_is_written_into_its_state_dict_can_be_saved(
    make, llama, batch, adapters, tmp_path
):
    """As ModelEmaV2 of timm does, also with the bytes of a fingerprint."""
    model = make()
    average = copy.deepcopy(model)
    adapters.train(model, batch, steps=1, lr=1e-2)
    with torch.no_grad():
        for mean, new in zip(
            average.state_dict().values(), model.state_dict().values(), strict=True
        ):
            mean.copy_(0.9 * mean + 0.1 * new)
    qpeft.save(average, tmp_path)
    saved = qpeft.load(copy.deepcopy(llama).to(DEVICE), tmp_path)

    found = adapters.logits(saved, batch)
    # the base's weights are averaged too, and rounded
    torch.testing.assert_close(found, adapters.logits(average, batch), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, adapters.logits(make(), batch), atol=1e-4)


@pytest.mark.parametrize("has_buffers", [False, True])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name not in FIRST)) for name in VARIANTS],
)
def test_adapter_saved_with_the_parameters_and_buffers_that_others_take_is_whole(
    llama, batch, adapters, name, has_buffers, tmp_path
):
    """FastChat and LLaVA save what is trained of a LoRA; OpenRLHF everything, with all buffers."""
    model = move(VARIANTS[name].adapt(copy.deepcopy(llama))).to(DEVICE).eval()
    state = {key: p.detach().cpu() for key, p in model.named_parameters() if p.requires_grad}
    if has_buffers:
        state = dict(model.named_parameters()) | dict(model.named_buffers())
    model.save_pretrained(str(tmp_path), state_dict=state)
    saved = qpeft.load(copy.deepcopy(llama).to(DEVICE), tmp_path)
    torch.testing.assert_close(adapters.logits(saved, batch), adapters.logits(model, batch))


@pytest.mark.parametrize("name", ["qpa", "cua", "attached to ia3"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_state_dict_of_a_wrapper_is_understood_or_refused(
    llama, adapters, batch, name, prefix, tmp_path
):
    """The values of the model that was to be saved were taken in its place."""
    model, fresh = (VARIANTS[name].adapt(copy.deepcopy(llama)).to(DEVICE).eval() for _ in range(2))
    state = {prefix + key: tensor for key, tensor in move(model).state_dict().items()}
    if prefix == "_orig_mod.":  # of torch.compile
        fresh.save_pretrained(str(tmp_path), state_dict=state)
        saved = qpeft.load(copy.deepcopy(llama).to(DEVICE), tmp_path)
        torch.testing.assert_close(adapters.logits(saved, batch), adapters.logits(model, batch))
    else:
        with pytest.raises(CheckpointError, match="without names of a wrapper"):
            fresh.save_pretrained(str(tmp_path), state_dict=state)


def test_change_of_a_merged_weight_is_named_when_it_is_undone(llama):
    """These restore the weight from before exactly; LoRA subtracts, and keeps a change."""
    model = move(VARIANTS["cua"].adapt(llama))
    model.merge_adapter()
    with torch.no_grad():
        model.get_base_model().model.layers[0].self_attn.q_proj.weight.add_(0.01)
    with pytest.warns(QpeftWarning, match="changed while adapters were merged") as warned:
        model.unmerge_adapter()
    assert len(warned) == 1


def test_state_dict_that_lacks_a_parameter_is_refused(llama, tmp_path):
    model = VARIANTS["qpa"].adapt(llama)
    state = model.state_dict()
    del state[next(name for name, p in model.named_parameters() if p.requires_grad)]
    with pytest.raises(CheckpointError, match="lacks 1 of"):
        model.save_pretrained(str(tmp_path), state_dict=state)


def test_state_of_an_adapter_alone_has_trained_biases_and_resized_rows_of_the_model(
    ids, adapters, tmp_path
):
    base = gpt2()
    other = copy.deepcopy(base)
    for each in (base, other):  # the rows are drawn
        each.resize_token_embeddings(each.config.vocab_size + 2, mean_resizing=False)
    model = move(VARIANTS["qpa"].adapt(base, bias="all"))
    state = {key: p for key, p in model.named_parameters() if "qpeft" in key or "lora_" in key}
    model.requires_grad_(False)
    model.save_pretrained(str(tmp_path), state_dict=state)
    saved = qpeft.load(other, tmp_path)
    assert torch.equal(adapters.logits(saved, ids), adapters.logits(model, ids))


def test_all_buffers_of_an_average_are_those_of_its_adapter(llama, batch, adapters, tmp_path):
    model = move(VARIANTS["qpa"].adapt(copy.deepcopy(llama))).to(DEVICE).eval()
    for buffer in (b for name, b in model.named_buffers() if name.endswith("fingerprint")):
        buffer.sub_(1)  # as the mean of integers is cut off
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    model.save_pretrained(str(tmp_path), state_dict=state)
    saved = qpeft.load(copy.deepcopy(llama).to(DEVICE), tmp_path)
    assert torch.equal(adapters.logits(saved, batch), adapters.logits(model, batch))


def test_checkpoint_of_another_seed_is_refused_when_it_is_read_in_place(llama, adapters):
    """As torch.distributed.checkpoint reads one."""
    saved = adapters.qpa(copy.deepcopy(llama), seed=1).state_dict()
    other = adapters.qpa(copy.deepcopy(llama))
    state = other.state_dict()
    for name, tensor in state.items():
        tensor.copy_(saved[name])
    with pytest.raises(CheckpointError, match="other initial values or settings"):
        other.load_state_dict(state)


def test_state_dict_of_the_trained_parameters_of_an_adapter_without_other_values(llama):
    model = VARIANTS["sora"].adapt(llama)
    state = {key: p.detach() + 1 for key, p in model.named_parameters() if p.requires_grad}
    model.load_state_dict(state, strict=False)
    assert all(torch.equal(p, state[key]) for key, p in model.named_parameters() if key in state)


@pytest.mark.parametrize("name", ["qpa", "qaa", "attached to lora"])
def test_state_dict_without_what_tells_the_initial_values_is_named(llama, name):
    """A checkpoint of the trained parameters alone, as loops and frameworks keep one."""
    model = VARIANTS[name].adapt(llama)
    state = {key: p for key, p in model.named_parameters() if p.requires_grad}
    with pytest.warns(QpeftWarning, match="without their fingerprint"):
        model.load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name not in FIRST)) for name in AVERAGED],
)
def test_a2_averages_of_buffers_are_the_same_buffers(llama, batch, adapters, name):
    """PyTorch cuts off the fraction of an averaged integer: 3 may become 2."""
    model = move(AVERAGED[name].adapt(llama)).to(DEVICE)
    averages = [
        AveragedModel(model, avg_fn=get_ema_avg_fn(0.9), use_buffers=use) for use in (False, True)
    ]
    for seed in range(9):
        move(model, seed)
        for average in averages:
            average.update_parameters(model)
    expected, found = (adapters.logits(average, batch) for average in averages)

    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_a2_hand_written_steps_equal_those_that_pytorch_records(make, batch):
    model = make()
    recorded = make()
    losses = []
    for _ in range(5):
        for each in (model, recorded):
            each.zero_grad()
            loss = each(**batch).loss
            loss.backward()
            losses.append(loss.item())
        for parameter in trained(model):
            parameter.data -= 0.05 * parameter.grad
        with torch.no_grad():
            for parameter in trained(recorded):
                parameter -= 0.05 * parameter.grad

    assert losses[::2] == losses[1::2]
    assert len(set(losses)) == 5


def test_a2_writes_are_seen_where_nothing_else_happens(make, batch, adapters):
    """No mode, adapter, or gradient changes: behind a step, and between two losses."""
    model = adapters.train(make(), batch, steps=1)
    for _ in range(2):
        for parameter in trained(model):
            parameter.data.mul_(0.5)
        assert_sees_its_parameters(model, make, batch)


@pytest.mark.parametrize("make", METHODS[:3], indirect=True)
@pytest.mark.parametrize("checkpoints", [False, True])
def test_steps_of_an_optimizer_evaluate_once_and_compare_nothing(
    make, batch, adapters, monkeypatch, checkpoints
):
    """A comparison waits for all queued work of an accelerator. Parts of the base have no hooks."""
    model = adapters.train(make(), batch, steps=1)
    parts = set(model.get_base_model().modules()) - {model.get_base_model()}

    assert not any(part._forward_pre_hooks or part._forward_hooks for part in parts)

    if checkpoints:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    generators = model.base_model.generators
    evaluated = []
    generators["default"].register_forward_hook(lambda *_: evaluated.append(1))
    monkeypatch.setattr(torch, "equal", None)
    adapters.train(model, batch, steps=3)

    assert len(evaluated) == 3


@pytest.mark.parametrize("before", ["nothing", "a call", "a failed call", "a merge", "set_adapter"])
@pytest.mark.parametrize(
    "part",
    [
        "model",
        pytest.param("model.layers.1", marks=pytest.mark.long),
        "model.layers.1.self_attn.q_proj",
    ],
)
def test_a2_part_of_the_model_alone_sees_what_was_written(make, batch, part, before):
    """Without a call of the model before, between, or behind the writes; a second one is not alone."""
    model = make()
    expected = make()
    inputs = batch["input_ids"] if part == "model" else torch.randn(2, 5, 16)
    if part == "model.layers.1":
        positions = torch.arange(5)[None].to(DEVICE)
        rotary = model.get_base_model().model.rotary_emb(inputs.to(DEVICE), positions)

    def outputs(each):
        module = each.get_base_model().get_submodule(part)
        more = {"position_embeddings": rotary} if part == "model.layers.1" else {}
        found = module(inputs.to(DEVICE), **more)
        return found[0] if isinstance(found, tuple | dict) else found

    if before == "a call":
        model(**batch)  # which places the values before the writes
    elif before == "a failed call":
        with pytest.raises(RuntimeError):  # which places the values before the writes
            model(inputs_embeds=torch.zeros(1, 5, 3, device=DEVICE))  # of another width
    elif before == "a merge" and not hasattr(model.base_model, "stock_problem"):
        model.merge_adapter()
        model.unmerge_adapter()
    elif before == "set_adapter":
        model.set_adapter("default")
    for _ in range(2):
        for parameter in trained(model):
            parameter.data.mul_(0.5)
        if DEVICE != "cpu":
            model.train().eval()  # a comparison would wait for all queued work
        expected.load_state_dict(model.state_dict())
        assert torch.equal(outputs(model), outputs(expected))


@pytest.mark.parametrize("make", METHODS[:2], indirect=True)
def test_write_into_a_buffer_of_a_generator_is_seen(make, batch):
    """As its parameters, if PyTorch records it."""
    model = make()
    buffers = [
        buffer for buffer in holder_of(model)["default"].buffers() if buffer.is_floating_point()
    ]
    assert buffers
    with torch.no_grad():
        before = model(**batch).logits
        for buffer in buffers:
            buffer.add_(0.3)
        assert not torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("is_on_cpu", [True, False])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_hooks_of_parameters_see_whole_gradients_or_none(
    make, batch, use_reentrant, is_on_cpu, monkeypatch
):
    """As of an optimizer in the backward pass; reentrant checkpointing has a gradient per segment."""
    if not is_on_cpu:  # the layers keep their tensors after a forward pass
        monkeypatch.setattr(Binding, "is_on_cpu", False)
    model = make().train()
    expected = make()
    expected(**batch).loss.backward()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    found = {}
    for parameter in trained(model):
        parameter.register_post_accumulate_grad_hook(
            lambda p: found.update({id(p): p.grad.clone()})
        )
    loss = model(**batch).loss
    # QuIC's are parameters of its layers
    if use_reentrant and holder_of(model) is not None:
        with pytest.raises(RuntimeError, match="partial gradient for each segment"):
            loss.backward()
        return
    loss.backward()
    for mine, other in zip(trained(model), trained(expected), strict=True):
        torch.testing.assert_close(found[id(mine)], other.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # as torch imports it
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_torchs_optimizer_in_the_backward_pass_steps_with_whole_gradients_or_none(
    make, batch, use_reentrant
):
    """It hangs on the accumulator nodes, of whose hooks PyTorch tells nobody."""
    model = make().train()
    expected = copy.deepcopy(model)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    in_backward = pytest.importorskip("torch.distributed.optim")._apply_optimizer_in_backward
    in_backward(torch.optim.SGD, trained(model), {"lr": 0.1})
    optimizer = torch.optim.SGD(trained(expected), lr=0.1)
    loss = model(**batch).loss
    if use_reentrant and holder_of(model) is not None:
        with pytest.raises(RuntimeError, match="partial gradient for each segment"):
            loss.backward()
        return
    for _ in range(2):
        loss.backward()
        expected(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = model(**batch).loss
    for mine, other in zip(trained(model), trained(expected), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_around_the_whole_model_gives_the_same_gradients(make, batch, use_reentrant):
    """The evaluation is not a part of what the checkpoint computes again."""
    model = make()
    gradients = []
    for checkpoints in (True, False):
        for parameter in trained(model):
            with torch.no_grad():
                parameter.add_(0)  # so that the next forward pass evaluates
        model.zero_grad()
        inputs = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()

        def loss(inputs):
            return model(inputs_embeds=inputs, labels=batch["labels"]).loss

        if checkpoints:
            checkpoint(loss, inputs, use_reentrant=use_reentrant).backward()
        else:
            loss(inputs).backward()
        gradients.append([parameter.grad for parameter in trained(model)])
    assert all(map(torch.equal, *gradients))


WRITES = {
    "by data": lambda owner, name: getattr(owner, name).data.fill_(0.5),
    "other data": lambda owner, name: setattr(getattr(owner, name), "data", None),
    "a parameter": lambda owner, name: setattr(owner, name, torch.nn.Parameter()),
    "a tensor": lambda owner, name: setattr(owner, name, 2 * getattr(owner, name)),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("make", ["qpa", "attached to lora"], indirect=True)
def test_write_into_a_generated_tensor_is_refused(make, batch, adapters, write):
    """It would have lasted until the next step. After the error the model is as before."""
    model = make()
    before = adapters.logits(model, batch)
    slot = holder_of(model).bindings["default"].slots[0]

    with pytest.raises(ConfigError):  # noqa: PT012
        WRITES[write](slot.owner, slot.name)
        model(**batch)
    assert torch.equal(adapters.logits(model, batch), before)


@pytest.mark.parametrize("make", [*METHODS[:3], "attached to lora"], indirect=True)
def test_hook_of_a_generated_tensor_is_refused(make):
    """Only the tensor of the next forward pass would have it."""
    layer = next(m for m in make().modules() if "default" in getattr(m, "lora_A", {}))
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        with pytest.raises(ConfigError, match="a hook of a tensor"):
            getattr(layer.lora_A["default"].weight, register)(lambda gradient: 0 * gradient)


@pytest.mark.parametrize("name", METHODS)
def test_generation_sees_what_was_written_in_its_encoder_as_well(name, ids):
    """It calls the encoder without the model around it."""
    variant = VARIANTS[name]
    model = variant.adapt(FAMILIES["t5"].make().eval(), task_type="SEQ_2_SEQ_LM")
    move(model, spread=1.0)
    model(input_ids=ids, labels=ids)
    for parameter in trained(model):
        parameter.data.add_(0.5)
    scores = [
        model.generate(
            input_ids=ids, max_new_tokens=2, output_scores=True, return_dict_in_generate=True
        ).scores[0]
        for _ in range(2)
    ]

    assert torch.equal(*scores)
