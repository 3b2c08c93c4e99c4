"""Small files and models that replace those which the examples of the pages download or take as
given.
"""

import re
import shutil

import pytest
from folders import write_rows
from snippets import snippets

from qpeft_lab.demo import corpus

STUDY = """
name: tiny
title: Two methods
question: Does it run?
seeds: [0]
tuning: {grid: [1.0]}
run: {model: embedded, data: docs.jsonl, steps: 2, batch_size: 2, seq_len: 32}
test_blocks: 4
costs: false
methods:
  - {key: lora, label: LoRA, method: lora, settings: {r: 2}, lr: 1.0e-3}
  - {key: qpa, label: QPA, method: qpa, settings: {r: 2, budget: 0.5}, lr: 1.0e-3}
"""


TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def conversation(number):
    """As those of examples/restaurants, but short."""
    user = {"role": "user", "content": f"name: {number}"}
    return [user, {"role": "assistant", "content": f"The name is {number}."}]


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory, qpeft_cli):
    """A folder with the values of `snippets.STAND_INS`, and with files and runs that pages use but
    do not create.
    """
    import numpy as np
    from PIL import Image
    from transformers import (
        GemmaConfig,
        GPT2Config,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessorPil,
    )

    import qpeft_lab.demo

    folder = tmp_path_factory.mktemp("stand-ins")
    (folder / "base").symlink_to(qpeft_lab.demo.base_path(), target_is_directory=True)
    chat_model = folder / "build" / "smollm2"
    shutil.copytree(folder / "base", chat_model)
    (chat_model / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "examples" / "restaurants").mkdir(parents=True)
    for name in ("train", "test"):
        rows = [{"messages": conversation(number)} for number in range(40)]
        write_rows(folder / "examples" / "restaurants" / f"{name}.jsonl", rows)
    docs = corpus.numpy_docs()[:60]
    for name in ("docs.jsonl", "train.jsonl"):
        write_rows(folder / name, [{"text": text} for text in docs])
    (folder / "text.txt").write_text("\n\n".join(docs), encoding="utf-8")
    (folder / "texts").mkdir()
    for name in ("ana", "ben"):
        shutil.copy(folder / "text.txt", folder / "texts" / f"{name}.txt")
    pairs = [
        f"name {n // 2}, area {n % 7},It is the {'king' if n % 2 else 'bird'} of area {n % 7}."
        for n in range(60)
    ]
    for name, some in (("pairs.csv", pairs), ("few-pairs.csv", pairs[:4])):
        (folder / name).write_text(
            "prompt,completion\n" + "\n".join(line.replace(", ", "; ") for line in some)
        )
    (folder / "mrpc-files").mkdir()
    for name in ("train", "validation"):
        made = [
            {"sentence1": f"{name} {n}", "sentence2": f"{name} {n % 5}", "label": n % 2}
            for n in range(40)
        ]
        write_rows(folder / "mrpc-files" / f"{name}.jsonl", made)
    (folder / "tiny.yaml").write_text(STUDY, encoding="utf-8")

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, num_labels=2, **small)
    ).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / "vit")
    GPT2Config().save_pretrained(folder / "gpt2-small")
    GemmaConfig(
        vocab_size=256_000,
        hidden_size=2048,
        intermediate_size=16_384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
    ).save_pretrained(folder / "gemma-2b")
    draw = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (folder / "photos" / kind).mkdir(parents=True)
        for n in range(12):
            pixels = draw.integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / kind / f"{n}.png")

    given = f"--model embedded --data {folder}/docs.jsonl --r 4 --steps 2 --seq-len 64"
    qpeft_cli(f"train {given} --out {folder}/run", code=0)
    shutil.copytree(folder / "run" / "exported", folder / "my-adapter")
    return folder


@pytest.fixture
def enter_folder_for(stand_ins, tmp_path, monkeypatch):
    """Change to a new folder with all stand-ins except those which a command of the page creates."""

    docs = corpus.numpy_docs()[:400]  # of more, the demo's would take half a minute to encode
    monkeypatch.setattr(corpus, "numpy_docs", lambda: docs)

    def enter(page):
        created = re.findall(r"--out ([\w-]+)", "".join(snippet.text for snippet in snippets(page)))
        for source in stand_ins.iterdir():
            if source.name not in created:
                (shutil.copytree if source.is_dir() else shutil.copy)(
                    source, tmp_path / source.name
                )
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)  # as for a reader's own script in this folder
        return tmp_path

    return enter
