"""Row T of issue 67: one thread evaluates, saves or plans while another one trains; an interrupt."""

import copy
import sys
import warnings
from threading import Event, Thread

import numpy as np
import pytest
import torch
from peft import (
    BOFTConfig,
    LoraConfig,
    UniLoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    peft_model,
)
from peft.tuners.boft.layer import BOFTLayer
from peft.tuners.unilora import UniLoraModel
from torch import nn
from transformers import LlamaConfig, T5Config, T5ForConditionalGeneration
from variants import VARIANTS, Variant, kinds_first, move

import qpeft
from qpeft.circuits.numerics import Float32ByDefault
from qpeft.core import binding
from qpeft.core.binding import Binding, StandIn
from qpeft.core.slots import Slot
from qpeft.methods import plan as planning
from qpeft.methods.qpa.generator import QPAGenerator
from qpeft.methods.quantum_peft.generator import QuantumPeftGenerator

pytestmark = pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
LORA = Variant("lora", LoraConfig, {"target_modules": "all-linear"})


@pytest.fixture
def frequent_switches():
    """A thread runs for a hundredth of the usual time before the next one."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 100)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.parametrize("name", ["lora", *kinds_first(VARIANTS)])
def test_t_training_is_not_changed_by_evaluations_in_another_thread(
    llama, ids, adapters, name, frequent_switches
):
    models = []
    for _ in range(2):
        torch.manual_seed(0)  # of PEFT's own initial values
        models.append(move({"lora": LORA, **VARIANTS}[name].adapt(copy.deepcopy(llama))))
    alone, watched = models
    ended = Event()

    def evaluate():
        while not ended.is_set():
            adapters.logits(watched, ids)

    thread = Thread(target=evaluate)  # whose exceptions are warnings, and so errors
    thread.start()
    adapters.train(watched, ids, steps=5)
    ended.set()
    thread.join()
    adapters.train(alone, ids, steps=5)
    for mine, expected in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, expected)

    assert torch.equal(adapters.logits(watched, ids), adapters.logits(alone, ids))


@pytest.mark.parametrize("name", ["attached to a prefix", "attached to lora", "qpa"])
@pytest.mark.parametrize("save", [qpeft.save, lambda model, folder: model.save_pretrained(folder)])
def test_t_model_stays_itself_while_it_is_saved(
    llama, ids, adapters, name, save, tmp_path, monkeypatch
):
    """Another thread calls it; a prefix that PEFT saves by another config was left out."""
    model = move(VARIANTS[name].adapt(llama))
    expected = adapters.logits(model, ids)
    configs = dict(model.peft_config)
    seen = []

    def in_the_middle(*args, **kwargs):
        seen.append(adapters.logits(model, ids))
        assert model.peft_config == configs
        return get_peft_model_state_dict(*args, **kwargs)

    monkeypatch.setattr(peft_model, "get_peft_model_state_dict", in_the_middle)
    save(model, str(tmp_path))
    assert seen
    assert all(torch.equal(one, expected) for one in seen)


class Slow(nn.Module):
    """A generator of two values; its evaluation in another thread ends when it is allowed to."""

    is_coupled = False

    def __init__(self):
        super().__init__()
        self.angles = nn.Parameter(torch.tensor([0.5, -1.0]))
        self.began, self.may_end = Event(), Event()

    def forward(self):
        flat = self.angles.sin()
        if self.angles.grad is None and self.angles._version:
            self.began.set()
            self.may_end.wait(0.5)  # the other thread cannot go on if it waits for this one
        return flat


def test_t_hooks_of_parameters_run_once_in_each_of_two_backward_passes(llama, ids, monkeypatch):
    """The second thread's pass begins and ends within the first one's, where no hook is due."""
    torch.manual_seed(0)
    model = move(VARIANTS["qpa"].adapt(llama)).double()
    values = [model(row[None], labels=row[None]).loss for row in ids[:2]]
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = [0.5 * g for g in torch.autograd.grad(sum(values), parameters, retain_graph=True)]
    for parameter in parameters:
        parameter.register_hook(lambda gradient: 0.5 * gradient)
    own = torch.autograd.grad
    threads = [Thread(target=values[1].backward)]

    def grad(*args, **kwargs):
        if threads:
            thread = threads.pop()
            thread.start()
            thread.join()
        return own(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    values[0].backward()
    torch.testing.assert_close([p.grad for p in parameters], expected)


def test_t_slow_evaluation_does_not_replace_a_later_one():
    """What QPA did: an evaluation that began before a step placed its values behind it."""
    generator = Slow()
    host = nn.Linear(2, 1, bias=False)
    binding = Binding(generator, [Slot(host, "weight", "", torch.Size([1, 2]), torch.float32)])
    with torch.no_grad():
        generator.angles.add_(0.25)
    other = Thread(target=binding.refresh)
    other.start()
    generator.began.wait()
    generator.angles.grad = torch.ones(2)
    torch.optim.SGD(generator.parameters(), lr=1.0).step()
    binding.refresh()
    generator.may_end.set()
    other.join()

    assert torch.equal(host.weight[0], generator.angles.sin())


def in_threads(n, call):
    threads = [Thread(target=call) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_t_checkpointed_part_does_not_wait_for_a_thread_that_waits_for_its_backward_pass(llama):
    """On an accelerator `flush` waits with the lock for the thread that computes the part again."""
    model = get_peft_model(llama, qpeft.QPAConfig(r=2, n_layers=1))
    (bound,) = model.base_model.generators.bindings.values()
    bound.refresh()
    placed = []
    part = Thread(target=lambda: placed.append(bound.place_for_layer()), daemon=True)
    with binding._lock:
        part.start()
        part.join(timeout=60)
        assert placed == [False]  # it has its tensors


def test_t_plans_in_threads_leave_peft_as_it_is(llama, frequent_switches):
    """What overlapped put the replacements of each other back, for good."""
    names = ["block_butterfly_perm", "perm2mat"]
    before = [getattr(BOFTLayer, name) for name in names]
    drawing = UniLoraModel._assign_unilora_indices_and_scales
    config = UniLoraConfig(theta_d_length=30, target_modules=["q_proj"], save_indices=False)

    def plan():
        for _ in range(3):
            qpeft.plan(llama.config, config)

    in_threads(3, plan)
    assert [getattr(BOFTLayer, name) for name in names] == before
    assert UniLoraModel._assign_unilora_indices_and_scales is drawing


def test_t_suggestions_in_threads_leave_the_default_dtype_and_the_warnings(frequent_switches):
    """Both are of the process: what overlapped put back what the other one had set."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=512,
        dtype="bfloat16",
    )
    filters = list(warnings.filters)

    in_threads(3, lambda: qpeft.suggest(config, parameters=400))
    assert torch.get_default_dtype() == torch.float32
    assert warnings.filters == filters


@pytest.mark.parametrize("generator", [QPAGenerator, QuantumPeftGenerator])
def test_t_adapter_and_base_that_are_made_in_two_threads_have_their_own_dtypes(
    generator, llama, ids, monkeypatch
):
    """Loading in bfloat16 sets the default dtype of the process, which is not the adapter's."""
    config = qpeft.QPAConfig if generator is QPAGenerator else qpeft.QuantumPeftConfig
    torch.manual_seed(0)
    alone = get_peft_model(copy.deepcopy(llama), config(r=3, n_layers=2, seed=5))
    inside, loaded = Event(), Event()
    init = generator.__init__

    def loading():
        inside.wait()
        torch.set_default_dtype(torch.bfloat16)
        loaded.set()

    def slow_init(self, *args, **kwargs):
        inside.set()
        loaded.wait()
        init(self, *args, **kwargs)

    monkeypatch.setattr(generator, "__init__", slow_init)
    thread = Thread(target=loading)
    thread.start()
    try:
        beside = get_peft_model(copy.deepcopy(llama), config(r=3, n_layers=2, seed=5))
        weight = nn.Linear(2, 2).weight  # of the base, after the adapter
    finally:
        thread.join()
        torch.set_default_dtype(torch.float32)
    assert weight.dtype is torch.bfloat16
    others = dict(beside.named_parameters())
    for name, parameter in alone.named_parameters():
        assert others[name].dtype is parameter.dtype
        assert torch.equal(others[name], parameter), name
    assert torch.equal(beside(ids).logits, alone(ids).logits)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_t_tensors_are_float32_whatever_the_default(default):
    integers = torch.arange(5)
    makers = [
        lambda: torch.tensor([0.1, 0.2]),
        lambda: torch.arange(0.0, 1.0, 0.1),
        lambda: torch.full((2,), 0.1),
        lambda: torch.eye(3),
        lambda: torch.linspace(0, 1, 7),
        lambda: integers * 0.1,
        lambda: integers / 3,
        lambda: integers.add(0.1, alpha=3),
        lambda: torch.rand(3, generator=torch.Generator().manual_seed(1)),
        lambda: nn.Linear(2, 2, bias=False).weight * 0,
        lambda: integers.sum(),
        lambda: torch.full((2,), 7),
        lambda: integers.to(torch.bfloat16),
        lambda: torch.as_tensor(np.array([0.1])),
        lambda: integers.double() * 0.1,
        lambda: torch.zeros(2, dtype=torch.float64),
    ]
    expected = [make() for make in makers]
    torch.set_default_dtype(default)
    try:
        with Float32ByDefault():
            made = [make() for make in makers]
        assert torch.get_default_dtype() is default
    finally:
        torch.set_default_dtype(torch.float32)
    for number, (tensor, wanted) in enumerate(zip(made, expected, strict=True)):
        assert tensor.dtype is wanted.dtype, number
        assert torch.equal(tensor, wanted), number


@pytest.mark.filterwarnings("ignore:(Failed to load the CUDA|Setting boft_n_butterfly_factor)")
def test_t_boft_that_is_made_while_another_thread_plans_is_peft_s_own(llama, ids, monkeypatch):
    base = copy.deepcopy(llama)
    boft = BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, target_modules=["q_proj"])
    expected = base(ids).logits
    made = []

    def in_the_middle(model, config, **options):
        if not made:
            made.append(None)  # before the thread is started, whose call comes here, too
            in_threads(1, lambda: made.append(get_peft_model(base, boft)(ids).logits))
        return get_peft_model(model, config, **options)

    monkeypatch.setattr(planning, "get_peft_model", in_the_middle)
    qpeft.plan(llama.config, LoraConfig(target_modules=["q_proj"]))
    assert torch.allclose(made[1], expected, atol=1e-6)


@pytest.mark.parametrize("save", [qpeft.save, lambda model, folder: model.save_pretrained(folder)])
def test_t_training_with_shots_is_not_changed_by_a_save_in_another_thread(
    llama, ids, adapters, tmp_path, save, frequent_switches
):
    """The check for NaN is exact, and places nothing that the other thread would take."""
    found = []
    for is_saved in (False, True):
        model = adapters.qpa(copy.deepcopy(llama))
        qpeft.set_backend(model, shots=1300)
        ended = Event()

        def save_again(model=model, ended=ended):
            while not ended.is_set():
                save(model, tmp_path)

        thread = Thread(target=save_again)
        if is_saved:
            thread.start()
        try:
            adapters.train(model, ids, steps=12)
        finally:
            ended.set()
            if is_saved:
                thread.join()
        found.append([p.detach().clone() for p in model.parameters() if p.requires_grad])

    assert all(map(torch.equal, *found))


def test_t_exact_values_of_one_thread_leave_the_backend_of_others(llama, ids, adapters):
    """What an export, a save and a merge need; in another thread the circuits run on the backend."""
    model = adapters.qpa(llama)
    first = qpeft.set_backend(model, shots=2000)
    holder = model.base_model.generators
    holder_is_exact, may_end = Event(), Event()
    exact = []

    def compute():
        with holder.exact():
            holder_is_exact.set()
            may_end.wait(30)
            exact.append(adapters.logits(model, ids))

    thread = Thread(target=compute)
    thread.start()
    holder_is_exact.wait(30)
    before = first.jobs.used["circuits"]
    adapters.train(model, ids, steps=2)
    assert first.jobs.used["circuits"] == before + 2 * first.circuits_per_step

    second = qpeft.set_backend(model, shots=3000)
    may_end.set()
    thread.join()
    assert holder["default"].feature.backend.jobs is second.jobs
    assert second.jobs.used["circuits"] == 0
    qpeft.set_backend(model)
    assert torch.equal(exact[0], adapters.logits(model, ids))


@pytest.mark.parametrize("kind", [StandIn, torch.Tensor])
def test_interrupt_between_two_tensors_leaves_none_of_an_earlier_value(
    llama, ids, adapters, kind, monkeypatch
):
    """Ctrl-C while they are placed; then a layer is called alone, with weights from a checkpoint."""
    other = move(adapters.qpa(copy.deepcopy(llama)), seed=2).state_dict()
    model = move(adapters.qpa(llama))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    inputs = torch.ones(1, layer.in_features)
    put = Slot.put
    placed = []

    def interrupted(slot, value):
        if isinstance(value, StandIn) == (kind is StandIn):
            placed.append(slot)
            if len(placed) == 2:
                raise KeyboardInterrupt
        put(slot, value)

    monkeypatch.setattr(Slot, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapters.train(model, ids, steps=1)
    monkeypatch.undo()
    model.load_state_dict(other)
    with torch.no_grad():
        alone = layer(inputs)
        model(ids)
        assert torch.equal(alone, layer(inputs))


def test_interrupt_inside_a_forward_pass_leaves_no_earlier_value_to_generate():
    """PyTorch calls no hook behind it; `generate` calls the encoder first, and on its own."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, decoder_start_token_id=0, **sizes))
    config = qpeft.QPAConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    model = move(get_peft_model(t5, config)).eval()
    ids = torch.arange(6)[None]

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.get_base_model().lm_head.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(input_ids=ids, labels=ids)
    hook.remove()
    for parameter in model.parameters():
        parameter.data += 0.1 * parameter.requires_grad
    encoder = model.get_base_model().get_encoder()
    with torch.no_grad():
        encoded = encoder(input_ids=ids).last_hidden_state
        model(input_ids=ids, labels=ids)
        assert torch.equal(encoded, encoder(input_ids=ids).last_hidden_state)


def test_a_pickled_binding_has_no_tensors_of_the_moment(llama, ids):
    """Of 20 files that `torch.save` wrote while another thread evaluated, 5 could not be loaded: the
    layers had been pickled with other tensors than the slots.
    """
    model = get_peft_model(llama, qpeft.QPAConfig(r=2, chunk_size=64, target_modules=["q_proj"]))
    model(ids)
    (own,) = model.base_model.generators.bindings.values()
    assert any(slot.placed is not None for slot in own.slots)
    assert all(slot.placed is None for slot in own.__getstate__()["slots"])
