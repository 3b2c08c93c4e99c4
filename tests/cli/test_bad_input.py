"""Bad input of every command: exit code 2, the option or name that is wrong, and nothing written."""

import json

import pytest
from snippets import ROOT

PLAN = "plan --model BASE"
GENERATE = "generate --model BASE"
EVALUATE = "evaluate --model BASE --data TEXT"
ANSWERS = "evaluate --model BASE --data PAIRS --generate"
TRAIN = "train --model BASE --data TEXT --out OUT"
LABELS = "--task text-classification"
ADAPTED = "evaluate --adapter ADAPTER --data TEXT"

OUTPUTS = [  # with a place of the other kind
    ("demo", "--out", "TEXT"),
    ("train --model embedded --data numpy-docs", "--out", "TEXT"),
    ("export ADAPTER", "--out", "TEXT"),
    ("compare run survey", "--out", "TEXT"),
    ("diagnose ADAPTER --samples 10", "--html", "FOLDER"),
    ("circuits export --n-qubits 3", "--out", "FOLDER"),
    ("frames --model embedded --data numpy-docs", "--out", "FOLDER"),
]
TABLE = [
    # usage
    ("plan", "", "--model"),
    ("plan", "--modle x", "--model"),
    ("exprot", "", "export"),
    # a method and its options
    (PLAN, "--budget 0.5 --chunk-size 8", "--chunk-size"),
    (PLAN, "--target-modules q_prj", "q_proj"),
    (PLAN, "--method lora --n-layers 2", "use --method qpa or qaa or quantum_peft"),
    (PLAN, "--method lora --preset official", "official"),
    (PLAN, "--method ia3 --r 4", "'r'"),
    (PLAN, "--method lroa", "'lora'"),
    (PLAN, "--r 0", "--r"),
    (PLAN, "--preset official --num-virtual-tokens 3", "num_virtual_tokens"),
    (PLAN, "--method lora --set biass=all", "'bias'"),
    (PLAN, "--r 2 --set r=4", "--set r=4"),
    (PLAN, "--set seed=4", "--seed"),
    (PLAN, "--steps 5", "--steps"),
    (PLAN, "--method quantum_peft --family lie --n-layers 3", "no effect with family='lie'"),
    (PLAN, "--method quantum_peft --frame-rank 4", "no effect with frame=None"),
    (PLAN, "--method quanta --bond 2", "only with 'mpo'"),
    (PLAN, "--set bias=[1", "NAME=VALUE"),
    (PLAN, "--method sora --set sora_lambda=0.1", "unknown field of method sora"),
    (PLAN, "--task image-classification", "image"),
    ("plan --model nowhere/else/at-all", "", "nowhere"),
    # a budget
    (PLAN, "--method auto", "--parameters"),
    # a server
    (PLAN, "--server vlm", "'vllm'"),
    (PLAN, "--method qaa --server vllm", "only LoRA is supported"),
    (TRAIN, "--method dora --server vllm", "it is DoRA"),
    (PLAN, "--parameters 99 --bytes 99", "--bytes"),
    (PLAN, "--parameters 99 --method lora", "--method auto"),
    (PLAN, "--parameters 99 --r 4 --share type", "--r, --share"),
    (PLAN, f"--parameters 99 {LABELS}", "--task"),
    (PLAN, "--bytes 9999 --frames some.safetensors", "some.safetensors"),
    # a run
    (TRAIN, "--data absent.txt", "absent.txt"),
    (TRAIN, "--config absent.yaml", "absent.yaml"),
    (TRAIN, "--shots 1000 --shot-budget 1000", "shot budget"),
    (TRAIN, "--backend pennylane:lightening.qubit", "lightening.qubit"),
    ("train --data TEXT --out OUT", "", "--model"),
    (TRAIN, "--label-column x", "label-column"),
    (f"{TRAIN} {LABELS}", "--prompt-column x", "prompt-column"),
    (f"{TRAIN} --task image-classification", "--text-column x", "text-column"),
    (f"{TRAIN} --task image-classification", "--seq-len 8", "seq-len"),
    ("demo --out OUT", "--methods lora,qap", "'qpa'"),
    ("frames --model BASE --data TEXT --out OUT", "--frame weights", "--frame"),
    ("frames --model BASE --data TEXT --out OUT", "--frames some.safetensors", "--frames"),
    # an adapter and its base
    (GENERATE, "--prompt x --temperature -1", "--temperature"),
    (GENERATE, "--prompt x --length-penalty 2", "--length-penalty"),
    (GENERATE, "--prompt x --seed 5", "--temperature"),
    (GENERATE, "--prompt x --frames some.safetensors", "--frames"),
    ("generate --prompt x --adapter ADAPTER", "--frames some.safetensors", "--frames"),
    (EVALUATE, "--method lora", "--method"),
    (EVALUATE, "--label-column x", "label-column"),
    (ADAPTED, "--ansatz ry_ladder", "FILE.py:NAME"),
    (ADAPTED, f"--method {ROOT}/examples/own_method.py:METHOD", "--method"),
    (ADAPTED, f"--ansatz {ROOT}/examples/own_ansatz.py:cz_ring", "--ansatz"),
    (GENERATE, "--prompt ''", "--prompt"),
    (GENERATE, f"--prompt '{'word ' * 40}'", "--max-new-tokens"),
    ("generate --prompt x --adapter BASE", "", "adapter"),
    ("evaluate --data TEXT", "", "--model"),
    (EVALUATE, "--seq-len 9999", "--seq-len"),
    (EVALUATE, "--num-beams 4", "--num-beams"),
    (EVALUATE, LABELS, "--adapter"),
    (EVALUATE, "--shots 100", "--adapter"),
    ("evaluate --adapter ADAPTER --data TEXT --eval-blocks 1", "--shots -5", "--shots"),
    ("evaluate --adapter ADAPTER --data TEXT --eval-blocks 1", "--shot-budget 9", "one of --shots"),
    (
        "evaluate --adapter ADAPTER --data TEXT --eval-blocks 1",
        "--noise 0.1",
        "no circuits that are measured",
    ),
    ("evaluate --adapter ADAPTER --data TEXT", "--seed 1", "one of --shots"),
    (f"evaluate --adapter ADAPTER --data TEXT {LABELS}", "", "task.json"),
    ("evaluate --model BASE --data PAIRS", "--pad-rows", "pad-rows"),
    (ANSWERS, LABELS, "--generate"),
    (ANSWERS, "--pad-rows", "--pad-rows"),
    (ANSWERS, "--seq-len 8", "--seq-len"),
    (ANSWERS, "--bertscore-model nowhere", "nowhere"),
    (ANSWERS, "--text-column prompt", "--generate"),
    ("export BASE --out OUT", "", "adapter"),
    ("export ADAPTER --out OUT", "--untie", "--merge"),
    ("export ADAPTER --out BASE", "", "BASE"),
    ("diagnose", "", "TARGET"),
    ("diagnose ADAPTER", "--method lroa", "FILE.py:NAME"),
    ("diagnose ADAPTER", "--samples 3", "--samples"),
    ("diagnose BASE/absent", "", "absent"),
    # circuits
    ("circuits draw", "--ansatz ry_lader", "'ry_ladder'"),
    ("circuits draw", "--ansatz mine.py", "FILE.py:NAME"),
    ("circuits draw", f"--n-qubits {10**23}", "--n-qubits"),
    ("circuits draw", "--adapter ADAPTER --n-qubits 3", "--n-qubits"),
    ("circuits drw", "", "draw"),
    # a study
    ("compare run surwey --out OUT", "", "'survey'"),
    ("compare run survey --out OUT", "--steps 0", "steps"),
    ("compare run survey --model BASE --data TEXT --out OUT", "--executor slurm", "--executor"),
    ("compare run survey --model BASE --data TEXT --out OUT", "--retry broken", "'broken'"),
    ("compare report BASE", "", "study.json"),
    *((command, f"{option} {other}", other) for command, option, other in OUTPUTS),
    *((command, f"{option} TEXT/deep/output", "") for command, option, _ in OUTPUTS),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("command, change, named", TABLE, ids=lambda part: part[:60])
def test_bad_input_is_refused_and_nothing_is_written(
    qpeft_cli, base_folder, adapter_folder, tmp_path, monkeypatch, command, change, named
):
    monkeypatch.chdir(tmp_path)
    places = {
        "TEXT": tmp_path / "text.txt",
        "PAIRS": tmp_path / "pairs.csv",
        "OUT": tmp_path / "out",
    }
    places["TEXT"].write_text(text := "The king went into the wood. " * 20)
    places["PAIRS"].write_text("prompt,completion\nthe king ,sings\n")
    (folder := tmp_path / "a.safetensors").mkdir()
    places |= {"BASE": base_folder, "ADAPTER": adapter_folder, "FOLDER": folder}
    before = sorted(tmp_path.iterdir())
    words = f"{command} {change}"
    for name, place in places.items():
        words, named = words.replace(name, str(place)), named.replace(name, str(place))
    found = json.loads(qpeft_cli(words, "--json", code=2).stdout)
    assert found["exit_code"] == 2
    field = named.removeprefix("--").replace(
        "-", "_"
    )  # errors of the library name settings as Python does
    assert named in found["message"] or field in found["message"]
    assert sorted(tmp_path.iterdir()) == before
    assert places["TEXT"].read_text() == text
