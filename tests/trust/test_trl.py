"""Rows A1 and A2 of issue 67 with trl itself, which copies a trained adapter to its reference."""

import math

import pytest
import tiny_models
from datasets import Dataset
from variants import VARIANTS, move

from trainers import QUIET

trl = pytest.importorskip("trl")
# trl on its own defaults, on other libraries, and on experimental trainers
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = [{"prompt": f"{n} and", "chosen": f" {n + 1}", "rejected": " a king"} for n in range(4)]
ANSWERS = {
    "prompt": [row["prompt"] for row in ROWS],
    "completion": [row["chosen"] for row in ROWS],
    "label": [True, False] * 2,
}
# trainer, settings, data, and the first loss of a policy that is equal to its reference
TRAINERS = {
    "dpo": ("DPO", {}, ROWS, math.log(2)),
    "dpo, precomputed": ("DPO", {"precompute_ref_log_probs": True}, ROWS, math.log(2)),
    "kto": ("KTO", {}, ANSWERS, 0.5),
    "grpo": ("GRPO", {"beta": 0.5, "num_generations": 2, "max_completion_length": 4}, ROWS, None),
}


EVERY = [(name, kind) for name in ("qpa", "quantum_peft", "sora", "quic, 1") for kind in TRAINERS]
SHORT = ("qpa", "dpo, precomputed")


@pytest.mark.parametrize(
    "name, kind",
    [SHORT, *(pytest.param(*c, marks=pytest.mark.long) for c in EVERY if c != SHORT)],
)
def test_a1_trained_adapter_is_equal_to_its_reference_at_first(name, kind, tmp_path):
    tokenizer = tiny_models.byte_tokenizer()
    model = move(VARIANTS[name].adapt(tiny_models.llama(vocab_size=len(tokenizer))))
    trainer_name, settings, data, first_loss = TRAINERS[kind]
    make_dataset = Dataset.from_list if isinstance(data, list) else Dataset.from_dict
    rewards = {
        "reward_funcs": lambda completions, **_: [sum(map(ord, c)) % 7.0 for c in completions]
    }
    trainer = getattr(trl, f"{trainer_name}Trainer")(
        model,
        args=getattr(trl, f"{trainer_name}Config")(
            str(tmp_path), **{**QUIET, "max_steps": 2, "bf16": False, **settings}
        ),
        train_dataset=make_dataset(data),
        processing_class=tokenizer,
        **(rewards if trainer_name == "GRPO" else {}),
    )
    trainer.train()
    first, second = trainer.state.log_history[:2]
    if first_loss is not None:
        assert first["loss"] == pytest.approx(first_loss, abs=1e-4)
        assert second["loss"] != first["loss"]
    else:
        assert first["kl"] == pytest.approx(0, abs=1e-6)
        assert second["kl"] > 0
