"""The commands that load adapters: `generate`, `evaluate`, `export`, and `frames`, whose file
adapters refer to.
"""

import hashlib
import json
import math
import shutil
import warnings

import pytest
import torch
from folders import write_rows
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpeft
from qpeft.errors import ConfigError, VerificationError
from qpeft.files import file_hash, read_json
from qpeft_lab import metrics
from qpeft_lab.cli.adapters import run_of, template_of
from qpeft_lab.cli.export import stock_logits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
IDS = torch.arange(20).reshape(2, 10)
PROMPT = "a bird said"


def load_base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


# generate


@pytest.fixture
def generated(answer):
    return lambda options: answer(f"generate --prompt '{PROMPT}' --max-new-tokens 12 {options}")[
        "text"
    ]


@pytest.mark.parametrize("method, adapter", [("lora", "run"), ("qpa", "run/exported")])
def test_replaced_base_of_a_stock_adapter_in_a_run_is_noted(
    qpeft_cli, base_folder, text, tmp_path, method, adapter
):
    """A stock adapter does not record its base, but the run does."""
    base = shutil.copytree(base_folder, tmp_path / "base")
    data = f"--model {base} --data {text} --seq-len 16 --steps 1 --target-modules q_proj"
    qpeft_cli(f"train {data} --method {method} --r 4 --out {tmp_path}/run", code=0)

    def shown():
        command = f"generate --adapter {tmp_path}/{adapter} --prompt a --max-new-tokens 1"
        return " ".join(qpeft_cli(command, code=0).stderr.split())

    assert "Note" not in shown()

    model = load_base(base)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(base)
    assert "not those of the base on which" in shown()


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize("differs", [True, False])
def test_tokenizer_of_an_adapter_that_is_not_used_is_noted(
    qpeft_cli, base_folder, adapter_folder, text, tmp_path, differs
):
    """Trainers save theirs with the adapter; tokens that were added are in this one alone."""
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    if differs:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(adapter)
    for command in (
        f"generate --adapter {adapter} --prompt a --max-new-tokens 1",
        f"evaluate --adapter {adapter} --data {text} --eval-blocks 1",
        f"export {adapter} --out {tmp_path}/merged --merge",
    ):
        shown = " ".join(qpeft_cli(command, code=0).stderr.split())
        assert ("has a tokenizer of its own" in shown) == differs, command


def test_text_is_that_of_transformers(qpeft_cli, generated, base_folder, adapter_folder, tmp_path):
    def expected(adapter=None, **options):
        tokenizer = AutoTokenizer.from_pretrained(base_folder)
        model = load_base(base_folder)
        if adapter:
            model = qpeft.load(model, adapter).eval()
        inputs = tokenizer(PROMPT, return_tensors="pt")
        out = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, pad_token_id=0, **options
        )
        return tokenizer.decode(out[0], skip_special_tokens=True)

    base = expected()
    adapted = expected(adapter_folder)
    beams = expected(num_beams=2, length_penalty=0.8)

    assert len({base, adapted, beams}) == 3

    on_base = f"--model {base_folder}"
    assert PROMPT + generated(on_base) == base
    assert PROMPT + generated(f"--adapter {adapter_folder}") == adapted  # which names its base
    assert PROMPT + generated(f"{on_base} --num-beams 2 --length-penalty 0.8") == beams

    (tmp_path / "adapter").symlink_to(adapter_folder)  # a run folder
    shown = qpeft_cli(f"generate --adapter {tmp_path} --max-new-tokens 12", input=PROMPT + "\n")
    assert shown.stdout == adapted + "\n"


def test_sampled_text_depends_on_the_seed(generated, base_folder):
    draw = f"--model {base_folder} --temperature 1.5"
    first, again, other = (generated(f"{draw} --seed {seed}") for seed in (1, 1, 2))
    assert first == again != other


# evaluate


def n_scored(file, seq_len):
    """A token a byte, and the first of each block is not scored."""
    n_bytes = file.stat().st_size
    return n_bytes - math.ceil(n_bytes / seq_len)


def test_base_and_adapter_are_scored_on_the_whole_text(
    answer, base_folder, adapter_folder, tmp_path
):
    (text := tmp_path / "text.txt").write_text("The king went into the wood.\nThe bird säng.\n" * 9)
    evaluate = (
        f"evaluate --adapter {adapter_folder} --model {base_folder} --data {text} --seq-len 32"
    )
    answered = answer(evaluate)

    assert answered["base"]["n_scored"] == answered["adapted"]["n_scored"] == n_scored(text, 32)
    assert answered["base"]["bits_per_byte"] == pytest.approx(
        answered["base"]["loss"] / math.log(2), rel=0.01
    )
    assert answered["adapted"]["loss"] != answered["base"]["loss"]
    assert answer(f"{evaluate} --batch-size 3")["base"]["loss"] == pytest.approx(
        answered["base"]["loss"], rel=1e-6
    )


def test_adapter_of_a_run_is_scored_with_its_settings_and_its_training_data_are_noted(
    qpeft_cli, answer, base_folder, text, tmp_path
):
    (other := tmp_path / "other.txt").write_text("The bird sings at night.\n" * 9)
    copy = shutil.copy(text, tmp_path / "copy.txt")
    run = tmp_path / "run"
    paths = f"--model {base_folder} --data {text} --eval-data {copy} --out {run}"
    shown = qpeft_cli(f"train {paths} --seq-len 16 --steps 1", code=0)

    assert "the validation data are the training data" in " ".join(shown.stderr.split())

    for adapter, given, seq_len in (
        (run, "", 16),
        (run / "adapter", "", 16),
        (run, "--seq-len 32", 32),
    ):
        answered = answer(f"evaluate --adapter {adapter} --data {other} {given}")
        assert answered["adapted"]["n_scored"] == n_scored(other, seq_len)
    for data, is_noted in ((text, True), (copy, True), (other, False)):
        shown = qpeft_cli(f"evaluate --adapter {run} --data {data} --chat-template chatml")
        said = " ".join(shown.stderr.split())
        assert ("training data" in said) == is_noted
        assert "has no messages" in said


def test_file_of_the_folder_that_a_run_learned_is_noted(qpeft_cli, base_folder, text, tmp_path):
    for place, name in (("learned", "a"), ("learned", "b"), ("other", "a")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / f"{name}.txt").write_text(f"{name} {place}: {text.read_text()[:900]}")
    paths = f"--model {base_folder} --data {tmp_path}/learned --out {tmp_path}/run"
    qpeft_cli(f"train {paths} --seq-len 16 --steps 1", code=0)
    for place, is_noted in (("learned", True), ("other", False)):
        shown = qpeft_cli(
            f"evaluate --adapter {tmp_path}/run --data {tmp_path}/{place}/a.txt", code=0
        )
        assert ("training data" in " ".join(shown.stderr.split())) == is_noted


@pytest.mark.parametrize("method", ["--method qaa", "--method cua --readout magnitude"])
def test_adapter_with_measured_circuits_is_scored_after_a_forecast(
    qpeft_cli, answer, base_folder, text, tmp_path, method
):
    model = f"--model {base_folder} --data {text} --seq-len 16"
    answer(f"train {model} {method} --lr 0.1 --steps 2 --out {tmp_path}/run")
    evaluate = f"evaluate --adapter {tmp_path}/run --data {text} --eval-blocks 2"
    found, other = (
        answer(f"{evaluate} --shots 64,128,64 --noise 0.1 --seed {seed}") for seed in (0, 1)
    )

    assert found["adapted"]["n_scored"] == found["measured"][0]["n_scored"] == 2 * 15
    assert found["adapted"] == other["adapted"]

    for one, again, shots in zip(found["measured"], other["measured"], (64, 128), strict=True):
        assert found["adapted"]["loss"] != one["loss"] != again["loss"]
        assert abs(one["loss"] - found["adapted"]["loss"]) < 0.5
        assert one["noise"] == 0.1
        assert one["shots"] == shots * one["circuits"]
    n_circuits = found["measured"][0]["circuits"]
    refused = qpeft_cli(f"{evaluate} --shots 64,128 --shot-budget 63", code=2)

    assert f"{n_circuits:,} circuits" in refused.stderr
    assert f"{192 * n_circuits:,} shots in all" in refused.stderr


def test_answers_of_a_device_belong_to_the_content_of_its_file(answer, base_folder, text, tmp_path):
    model = f"--model {base_folder} --data {text} --seq-len 16 --method cua"
    answer(f"train {model} --readout magnitude --lr 0.1 --steps 2 --out {tmp_path}/run")
    evaluate = f"evaluate --adapter {tmp_path}/run --data {text} --eval-blocks 1 --shots 50"

    def measured(state):
        device = tmp_path / f"{state}" / "device.py"  # of one name in several folders
        device.parent.mkdir(exist_ok=True)
        device.write_text(
            "import numpy as np\nfrom qpeft.backends import Backend\n\nclass Mine(Backend):\n"
            "    name = 'mine'\n\n    def run(self, ansatz, angles, shots, seed):\n"
            f"        p = np.eye(2**ansatz.n_qubits)[{state}]\n"
            "        return np.tile(p, (len(angles), 1))\n\ndevice = Mine()\n"
        )
        return answer(f"{evaluate} --backend {device}:device")["measured"][0]

    first, other, again = (measured(state) for state in (0, 1, 0))
    assert first["answered_before"] == other["answered_before"] == 0
    assert first["loss"] == again["loss"] != other["loss"]
    assert again["answered_before"] == again["circuits"]


def test_generated_answers_are_scored_against_all_references(
    answer, base_folder, adapter_folder, tmp_path
):
    rows = [
        ("the king ", "sings at night"),
        ("the bird ", "sings"),
        ("the king ", "went into the wood"),
    ]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("mr,ref\n" + "".join(f"{prompt},{answer}\n" for prompt, answer in rows))
    columns = "--prompt-column mr --completion-column ref"
    search = "--max-new-tokens 6 --num-beams 2"
    adapter = f"--adapter {adapter_folder} --model {base_folder}"
    answered = answer(f"evaluate {adapter} --data {pairs} {columns} --generate {search}")
    references = [["sings at night", "went into the wood"], ["sings"]]

    assert answered["prompts"] == ["the king ", "the bird "]
    assert answered["references"] == references
    assert answered["base"]["texts"] != answered["adapted"]["texts"]

    for who, given in (("base", f"--model {base_folder}"), ("adapted", adapter)):
        one = answer(f"generate {given} --prompt 'the king ' {search}")
        assert answered[who]["texts"][0] == one["text"]
        expected = metrics.score_texts(answered[who]["texts"], references)
        assert {name: answered[who][name] for name in expected} == expected


def test_answers_of_conversations_are_those_of_transformers_in_the_chat_template(
    qpeft_cli, answer, base_folder, tmp_path
):
    """The template has the special tokens, so a tokenizer that begins texts with one adds none."""
    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.chat_template = "x{% for m in messages %}{{ m.role }} {{ m.content }}.{% endfor %}"
    begin = [("<end>", tokenizer.eos_token_id)]
    processor = TemplateProcessing(single="<end> $A", special_tokens=begin)
    tokenizer.backend_tokenizer.post_processor = processor
    tokenizer.save_pretrained(base)
    model = load_base(base_folder)
    for weight in filter(lambda part: part.ndim == 2, model.parameters()):
        torch.nn.init.normal_(weight)  # so that each token matters
    model.save_pretrained(base)
    user = {"role": "user", "content": "the king"}
    answers = ["sings at night", "went into the wood"]
    rows = [{"messages": [user, {"role": "assistant", "content": text}]} for text in answers]
    rows.append({"messages": [*rows[0]["messages"], user]})  # it has no answer
    data = write_rows(tmp_path / "chats.jsonl", rows)
    evaluate = f"evaluate --model {base} --data {data} --generate --max-new-tokens 6"
    shown = qpeft_cli(evaluate, "--json", code=0)

    assert "1 of 3 rows" in shown.stderr

    content = json.loads(shown.stdout)
    assert content["prompts"] == ["xuser the king."]
    assert content["references"] == [answers]

    ids = tokenizer.apply_chat_template([user], return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert content["base"]["texts"] == [tokenizer.decode(expected[0, ids.shape[1] :])]

    asked = f"--prompt '{user['content']}' --max-new-tokens 6"
    (text,) = content["base"]["texts"]
    assert answer(f"generate --model {base} {asked} --chat")["text"] == text
    assert qpeft_cli(f"generate --model {base} {asked} --chat", code=0).stdout == text + "\n"
    assert answer(f"generate --model {base} {asked}")["text"] != text

    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}:{% endfor %}")
    assert answer(f"{evaluate} --chat-template {template}")["prompts"] == ["the king:"]


@pytest.mark.usefixtures("verified_here")
def test_chat_has_the_template_of_the_run(qpeft_cli, answer, base_folder, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    turns = [("user", "the king"), ("assistant", "sings at night")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    data = write_rows(tmp_path / "chats.jsonl", [row] * 40)
    train = f"train --model {base_folder} --data {data} --chat-template {template} --steps 2"
    qpeft_cli(f"{train} --batch-size 2 --seq-len 16 --out {tmp_path / 'run'}", code=0)
    asked = f"generate --adapter {tmp_path / 'run'} --max-new-tokens 6 --prompt"
    shown = qpeft_cli(f"{asked} 'the king'", "--json", code=0)
    assert "trained on conversations; add --chat" in shown.stderr

    shown = qpeft_cli(f"{asked} 'the king' --chat", "--json", code=0)
    assert "--chat" not in shown.stderr
    continued = answer(f"{asked} 'the king '")  # what the template makes of it
    assert json.loads(shown.stdout)["text"] == continued["text"]
    with_system = answer(f"{asked} 'king' --system 'the' --chat")
    assert with_system["text"] == continued["text"]
    shown = qpeft_cli(f"{asked} 'king' --system 'the'", code=2)
    assert "--system is a message of a conversation; add --chat" in shown.stderr

    # the adapter alone, as one of many, and its exports
    copy = shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "ana")
    model = f"--model {base_folder}"
    alone = qpeft_cli(f"generate --adapter {copy} {model} --prompt 'the king'", code=0)
    assert "trained on conversations; add --chat" in alone.stderr
    chat = f"{model} --max-new-tokens 6 --prompt 'the king' --chat"
    assert answer(f"generate --adapter {copy} {chat}")["text"] == continued["text"]
    scored = f"{model} --data {data} --seq-len 16"
    assert (
        answer(f"evaluate --adapter {copy} {scored}")["adapted"]
        == answer(f"evaluate --adapter {tmp_path / 'run'} {scored}")["adapted"]
    )
    shown = qpeft_cli(f"export {tmp_path / 'run'} --out {tmp_path / 'stock'}", code=0)
    assert "a server uses the chat template of the base; give it" in shown.stderr
    answer(f"export {tmp_path / 'run'} --out {tmp_path / 'stock'}")  # replaces it
    assert (tmp_path / "stock" / "chat_template.jinja").read_text() == template.read_text()
    answer(f"export {copy} {model} --out {tmp_path / 'merged'} --merge")
    template.write_text("another")  # of the file, not of the run
    assert answer(f"generate --adapter {tmp_path / 'run'} {chat}")["text"] == continued["text"]
    shown = qpeft_cli(f"{train} --batch-size 2 --seq-len 16 --out {tmp_path / 'run'}", code=2)
    assert "chat_template was" in " ".join(shown.stderr.split())
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.apply_chat_template(row["messages"], tokenize=False) == "the king sings at night "


def test_checkpoint_has_the_settings_of_its_run_and_not_its_scores(tmp_path):
    (checkpoint := tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    assert run_of(checkpoint, with_checkpoints=True) is None
    (template := tmp_path / "mine.jinja").write_text("as it was")
    settings = {"model": "embedded", "data": "numpy-docs", "out": "run", "method": "qpa", "lr": 0.1}
    settings["chat_template"] = str(template)
    content = {"settings": settings, "identity": {"chat_template": file_hash(template)}}
    (tmp_path / "config.json").write_text(json.dumps({**content, "environment": {}}))
    run = run_of(checkpoint, with_checkpoints=True)

    assert run.path == tmp_path
    assert run_of(checkpoint) is None
    assert template_of(checkpoint, run) == str(template)
    template.write_text("as it is")
    with pytest.raises(ConfigError, match=r"mine\.jinja changed since the run"):
        template_of(checkpoint, run)
    (tmp_path / "adapter").mkdir()
    kept = shutil.copy(template, tmp_path / "adapter" / "chat_template.jinja")
    assert template_of(checkpoint, run) == str(kept)


def test_run_that_has_not_ended_is_named(qpeft_cli, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    shown = qpeft_cli(f"generate --adapter {tmp_path} --prompt a", code=2)
    assert "this run has not ended; run its command again" in " ".join(shown.stderr.split())


def test_chat_without_a_template_is_refused_before_the_weights(qpeft_cli, base_folder):
    (weights := base_folder / "model.safetensors").rename(base_folder / "gone")
    try:
        shown = qpeft_cli(f"generate --model {base_folder} --prompt x --chat", code=2)
    finally:
        (base_folder / "gone").rename(weights)
    assert "has no chat template" in shown.stderr


# export


def test_export_is_stock_and_verified_without_qpeft(answer, base_folder, adapter_folder, tmp_path):
    out = tmp_path / "exported"
    out.mkdir()
    (out / "qpeft.json").write_text("{}")  # an earlier export is replaced
    answered = answer(f"export {adapter_folder} --out {out}")

    assert answered["max_logit_difference"] <= 1e-6
    assert read_json(out / "adapter_config.json")["peft_type"] == "LORA"

    live = qpeft.load(load_base(base_folder), adapter_folder).eval()
    stock = PeftModel.from_pretrained(load_base(base_folder), str(out)).eval()
    torch.testing.assert_close(logits(stock), logits(live), rtol=0, atol=1e-6)

    loaded: dict = {}
    exec(answered["load"], loaded)
    assert torch.equal(logits(loaded["model"].eval()), logits(stock))
    assert answered["path"] == str(out)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("content", ["a text", "general.type model"])
def test_gguf_does_not_replace_another_file(qpeft_cli, adapter_folder, tmp_path, content):
    from gguf import GGUFWriter

    file = tmp_path / "llama.gguf"
    if content == "a text":
        file.write_text(content)
    else:
        writer = GGUFWriter(file, "llama")
        writer.add_type("model")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    before = file.read_bytes()
    done = qpeft_cli(f"export {adapter_folder} --gguf {file}", code=2)
    assert "is no adapter in GGUF, and would be lost" in done.stderr
    assert file.read_bytes() == before


@pytest.mark.usefixtures("verified_here")
def test_gguf_is_exported_with_a_modelfile(qpeft_cli, answer, adapter_folder, tmp_path):
    gguf = tmp_path / "ana.gguf"
    out = tmp_path / "out"
    assert "path" not in answer(f"export {adapter_folder} --gguf {gguf}")
    assert {path.name for path in tmp_path.iterdir()} == {"ana.gguf", "ana.Modelfile"}

    alone = gguf.read_bytes()
    modelfile = tmp_path / "ana.Modelfile"
    made = modelfile.read_text().splitlines()[2:]
    modelfile.write_text("FROM mine")  # as its user is asked to
    found = answer(f"export {adapter_folder} --gguf {gguf} --out {out}")

    assert found["gguf"] == str(gguf)
    assert found["path"] == str(out)
    assert gguf.read_bytes() == alone
    assert modelfile.read_text() == "FROM mine"
    assert made == [f"FROM {found['base']}", "ADAPTER ./ana.gguf"]

    for version in ("v1", "v2"):  # each has a Modelfile of its own
        answer(f"export {adapter_folder} --gguf {tmp_path}/ana.{version}")
        assert f"./ana.{version}" in (tmp_path / f"ana.{version}.Modelfile").read_text()

    inside = f"--gguf {out}/ana.gguf --out {out}"  # which the export replaces
    for options in ("", f"--gguf {tmp_path}", f"--gguf {gguf} --merge --out {out}", inside):
        qpeft_cli(f"export {adapter_folder} {options}", code=2)


@pytest.mark.long
def test_tied_head_is_merged_only_with_untie(qpeft_cli, base_folder, save_adapter, tmp_path):
    out = tmp_path / "merged"
    adapter = save_adapter(target_modules=["lm_head"])
    assert "--untie" in qpeft_cli(f"export {adapter} --out {out} --merge", code=2).stderr
    assert not any(tmp_path.iterdir())
    of_stock = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    with warnings.catch_warnings(action="ignore"):  # PEFT's, on tied heads
        get_peft_model(load_base(base_folder), of_stock).save_pretrained(tmp_path / "stock")
    assert "--untie" in qpeft_cli(f"export {tmp_path / 'stock'} --out {out} --merge", code=2).stderr

    qpeft_cli(f"export {adapter} --out {out} --merge --untie", code=0)
    live = qpeft.load(load_base(base_folder), adapter).eval()
    torch.testing.assert_close(logits(load_base(out)), logits(live), rtol=0, atol=1e-4)

    embedding = load_base(out).get_input_embeddings().weight
    assert torch.equal(embedding, load_base(base_folder).get_input_embeddings().weight)

    qpeft_cli(f"export {adapter} --out {out} --merge --untie", code=2)  # it is there


@pytest.mark.parametrize(
    "failure, code", [(VerificationError("it does not load"), 1), (KeyboardInterrupt(), 130)]
)
def test_failed_verification_keeps_the_earlier_export(
    qpeft_cli, adapter_folder, tmp_path, monkeypatch, failure, code
):
    out = tmp_path / "exported"
    earlier = {"qpeft.json": b"{}", "adapter_model.safetensors": b"good"}
    out.mkdir()
    for name, content in earlier.items():
        (out / name).write_bytes(content)
    sizes = []

    def fails(code, inputs):
        sizes.extend(file.stat().st_size for file in tmp_path.rglob("adapter_model.safetensors"))
        raise failure

    monkeypatch.setattr("qpeft_lab.cli.export.stock_logits", fails)
    qpeft_cli(f"export {adapter_folder} --out {out}", code=code)

    assert max(sizes) > len(b"good")  # the new export was there to be checked
    assert {file.name: file.read_bytes() for file in out.iterdir()} == earlier
    assert list(tmp_path.iterdir()) == [out]


def test_verification_process_cannot_import_qpeft():
    with pytest.raises(VerificationError, match=r"import of qpeft halted|No module named"):
        stock_logits("import qpeft", {"input_ids": IDS})


@pytest.mark.parametrize(
    "method", ["qaa --ansatz rxyz --n-layers 2", "bottleneck --bottleneck-size 4"]
)
def test_method_without_a_stock_form_is_scored_and_generates_and_is_not_exported(
    qpeft_cli, answer, base_folder, text, tmp_path, method
):
    paths = f"--model {base_folder} --data {text} --out {tmp_path}/run"
    answer(f"train {paths} --method {method} --steps 2")
    adapter = f"--adapter {tmp_path}/run/adapter --model {base_folder}"
    answered = answer(f"evaluate {adapter} --data {text}")

    assert answered["adapted"]["loss"] != answered["base"]["loss"]

    answer(f"generate {adapter} --prompt 'The king' --max-new-tokens 4")
    for merge in ("", "--merge"):
        qpeft_cli(f"export {tmp_path}/run {merge} --out {tmp_path}/exported", code=2)
        assert not (tmp_path / "exported").exists()


# frames


@pytest.mark.usefixtures("verified_here")
def test_frame_file_in_another_folder_is_used_by_every_command(
    qpeft_cli, answer, base_folder, text, tmp_path
):
    (tmp_path / "deep" / "frames").mkdir(parents=True)
    file = tmp_path / "deep" / "frames" / "mine.safetensors"
    run = tmp_path / "run"
    data = f"--model {base_folder} --data {text} --seq-len 32"
    shared = "--r 2 --n-layers 1 --share type"
    made = answer(f"frames {data} {shared} --target-modules q_proj,up_proj --out {file}")

    assert made["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()

    qpeft_cli(f"frames {data} --out {file}", code=2)  # adapters may refer to it

    options = f"--method quantum_peft --frames {file} {shared}"
    trained = answer(f"train {data} {options} --steps 2 --out {run}")
    plan = answer(f"plan --model {base_folder} {options}")

    # those of the file
    assert {name.rpartition(".")[2] for name in plan["target_modules"]} == {
        "q_proj",
        "up_proj",
    }
    assert plan["trainable"] == trained["trainable"]

    commands = (
        f"generate --adapter {run} --prompt 'The king' --max-new-tokens 2",
        f"evaluate --adapter {run} --data {text}",
        f"export {run}/adapter --out {tmp_path}/exported",
    )
    for command in commands:
        qpeft_cli(command, code=0)
    qpeft_cli(f"diagnose {run} --samples 10", code=0)
    moved = file.rename(tmp_path / "moved.safetensors")
    for command in commands:
        assert "--frames" in qpeft_cli(command, code=2).stderr
        qpeft_cli(f"{command} --frames {moved}", code=0)
