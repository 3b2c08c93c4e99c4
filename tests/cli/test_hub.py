"""`--push-to-hub` of `qpeft export` and `qpeft train`, against a stub of the hub's endpoint in this
process.
"""

import base64
import io
import json
import shutil

import pytest
from http_server import LocalServer
from PIL import Image

import qpeft
from qpeft.core.model_card import users_card, write_card
from qpeft.files import read_json, write_json

BASE = "base_model_name_or_path"
WEIGHTS = "adapter_model.safetensors"
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.usefixtures("verified_here"),
]


class Hub(LocalServer):
    """Accepts the creation of repositories and commits; keeps the files of `repository`."""

    def __init__(self):
        self.repository, self.files, self.tokens = None, {}, set()
        self.ignored = set()  # names of files that a .gitignore of the repository refuses
        super().__init__()
        self.headers = {"Content-Type": "application/json"}

    def respond(self, path, headers, body):
        self.tokens.add(headers["Authorization"])
        return json.dumps(self.answer(path, body)).encode()

    def answer(self, path, body):
        if path == "/api/repos/create":
            self.repository = json.loads(body)
            return {"url": f"{self.url}/me/ana", "name": "me/ana"}
        if path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [
                {"path": path, "uploadMode": "regular", "shouldIgnore": path in self.ignored}
                for path in paths
            ]
            return {"files": files}
        if path.endswith("/commit/main"):
            for row in map(json.loads, body.splitlines()):
                if row["key"] == "file":
                    value = row["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
                if row["key"] == "deletedFile":
                    del self.files[row["value"]["path"]]
            commit = f"{self.url}/me/ana/commit/0123"
            return {"commitUrl": commit, "commitOid": "0123", "success": True}
        if "/tree/main" in path:
            return [
                {"type": "file", "path": path, "size": len(content), "oid": "0"}
                for path, content in self.files.items()
            ]
        return {}  # the check of the card's metadata


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    yield made
    made.close()


@pytest.fixture(scope="module")
def run(answer, base_folder, text, tmp_path_factory):
    """A run of an adapter that refers to a frame file."""
    folder = tmp_path_factory.mktemp("framed")
    data = f"--model {base_folder} --data {text} --seq-len 16"
    frames = folder / "frames.safetensors"
    maps = "--share type --target-modules q_proj,up_proj"
    answer(*f"frames {data} {maps} --out {frames}".split())
    options = f"--method quantum_peft --frames {frames} {maps} --r 2 --steps 2"
    answer(*f"train {data} {options} --out {folder / 'run'}".split())
    return folder / "run"


def test_stock_and_compact_form_are_uploaded_with_the_scores_of_the_run(
    answer, hub, base_folder, run, tmp_path
):
    pushed = answer("export", run, "--out", tmp_path / "out", "--push-to-hub", "me/ana")
    assert pushed["url"] == f"{hub.url}/me/ana"
    assert hub.repository["name"] == "ana"
    assert hub.repository["organization"] == "me"
    assert hub.tokens - {None} == {"Bearer hf_of_this_test"}

    weights = "adapter_model.safetensors"
    assert hub.files[weights] == (tmp_path / "out" / weights).read_bytes()
    assert hub.files[f"compact/{weights}"] == (run / "adapter" / weights).read_bytes()
    assert {path for path in hub.files if path.startswith("compact/")} == {
        "compact/adapter_config.json",
        f"compact/{weights}",
    }

    card = hub.files["README.md"].decode()
    result = read_json(run / "result.json")
    config = read_json(run / "adapter/adapter_config.json")
    kept = (tmp_path / "out" / "README.md").read_text().replace(str(base_folder), base_folder.name)
    own, mark, _ = kept.partition("<!--")

    assert mark
    assert card.startswith(own)
    assert card.endswith(kept.removeprefix(own))

    losses = " | ".join(f"{result[when]['loss']:.4f}" for when in ("before", "after"))
    assert f"| {result['before']['unit']} | {losses} |" in card
    assert config["frames_sha256"] in card
    assert users_card(tmp_path / "out") is None


@pytest.mark.parametrize(
    "source, name",
    [
        (None, "my-base"),
        ({"base": "smollm2", "about": "SmolLM2", "hub_id": "org/SmolLM2"}, "org/SmolLM2"),
    ],
    ids=["unknown", "of a package"],
)
def test_path_of_the_base_is_not_uploaded(
    answer, hub, base_folder, adapter_folder, tmp_path, source, name
):
    base = shutil.copytree(base_folder, tmp_path / "my-base")
    if source is not None:
        write_json(base / "source.json", source)
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter")
    config = read_json(adapter / "adapter_config.json")
    write_json(adapter / "adapter_config.json", {**config, BASE: str(base)})
    (adapter / "README.md").unlink()
    write_card(adapter, qpeft.QPAConfig)
    answer("export", adapter, "--push-to-hub", "me/ana")
    for path, content in hub.files.items():
        assert str(tmp_path).encode() not in content, path
    for folder in ("", "compact/"):
        assert json.loads(hub.files[f"{folder}adapter_config.json"])[BASE] == name
        assert f"from_pretrained({name!r}" in hub.files[f"{folder}README.md"].decode()
    card = hub.files["README.md"].decode()

    assert ("base_model: org/SmolLM2" in card) == (source is not None)

    about = "qpeft base smollm2" if source else "`my-base` was a folder or file where the adapter"
    assert about in card.partition("## Base model")[2]


def test_compact_adapter_is_uploaded_without_scores_and_a_users_card_as_it_is(
    answer, hub, adapter_folder, tmp_path
):
    answer("export", adapter_folder, "--push-to-hub", "me/ana")
    assert b"## Scores" not in hub.files["README.md"]
    assert "loss.png" not in hub.files
    assert "compact/adapter_config.json" in hub.files

    out = tmp_path / "out"
    answer("export", adapter_folder, "--out", out)
    (out / "README.md").write_text("My card.")
    hub.files["compact/frames.safetensors"] = b"of an earlier upload"
    answer("export", adapter_folder, "--out", out, "--push-to-hub", "me/ana")

    assert hub.files["README.md"] == b"My card."
    assert "compact/frames.safetensors" not in hub.files


def test_files_of_an_earlier_upload_that_decide_how_an_adapter_is_read_are_deleted(
    answer, hub, adapter_folder
):
    """Such as the chat template and the labels of another run; a user's own files stay."""
    stale = ("chat_template.jinja", "task.json", "loss.png", "compact/task.json")
    hub.files |= dict.fromkeys((*stale, "notes.md"), b"old")
    answer("export", adapter_folder, "--push-to-hub", "me/ana")

    assert not {*stale} & {*hub.files}
    assert hub.files["notes.md"] == b"old"
    assert WEIGHTS in hub.files


@pytest.mark.parametrize(
    "options, present, has",
    [
        (["--merge"], "adapter_config.json", "the adapter of another upload"),
        ([], "model.safetensors", "the whole model of another upload"),
        ([], "model-00001-of-00002.safetensors", "the whole model of another upload"),
    ],
)
def test_adapter_and_whole_model_are_not_uploaded_next_to_each_other(
    qpeft_cli, hub, adapter_folder, tmp_path, options, present, has
):
    """Transformers would load the model with the adapter on top of it."""
    hub.files[present] = b"old"
    where = ["--out", tmp_path / "out", "--push-to-hub", "me/ana"]
    shown = qpeft_cli("export", adapter_folder, *options, *where, code=1)

    assert f"me/ana has {has}" in " ".join(shown.stderr.split())
    assert hub.files == {present: b"old"}
    assert any((tmp_path / "out").glob("*.safetensors"))


def test_file_that_the_hub_ignores_is_an_error(qpeft_cli, hub, adapter_folder):
    hub.ignored = {"adapter_model.safetensors"}
    shown = qpeft_cli("export", adapter_folder, "--push-to-hub", "me/ana", code=1)
    assert "the hub did not keep adapter_model.safetensors" in " ".join(shown.stderr.split())


def test_failed_upload_keeps_the_export_and_hides_the_token(
    qpeft_cli, hub, adapter_folder, tmp_path
):
    hub.status = 403
    out = tmp_path / "out"
    shown = qpeft_cli("export", adapter_folder, "--out", out, "--push-to-hub", "me/ana", code=1)

    assert "its upload to me/ana failed: " in " ".join(shown.stderr.split())
    assert "403" in shown.stderr
    assert "hf_of_this_test" not in shown.output
    assert (out / "adapter_config.json").is_file()


@pytest.mark.parametrize("method", ["quantum_peft", "lora"])
def test_run_uploads_its_adapter(answer, hub, base_folder, text, tmp_path, method):
    data = f"--model {base_folder} --data {text} --seq-len 16 --steps 2 --method {method} --r 4"
    command = f"train {data} --target-modules q_proj --out {tmp_path / 'run'} --push-to-hub me/ana"
    pushed = answer(*command.split())
    assert pushed["url"] == f"{hub.url}/me/ana"

    has_generator = method == "quantum_peft"
    for form in ("", *(["compact/"] if has_generator else [])):
        read = (tmp_path / "run" / ("adapter" if form else "exported") / WEIGHTS).read_bytes()
        assert hub.files[f"{form}{WEIGHTS}"] == read
    assert any(name.startswith("compact/") for name in hub.files) == has_generator
    loss = read_json(tmp_path / "run" / "result.json")["after"]["loss"]
    card = hub.files["README.md"].decode()
    assert f"| {loss:.4f} |" in card
    assert ("## Compact adapter" in card) == has_generator
    assert "](loss.png)" in card
    assert Image.open(io.BytesIO(hub.files["loss.png"])).width > 500

    hub.files.clear()
    answer(*command.split())  # a finished run is uploaded again
    assert WEIGHTS in hub.files


def test_run_that_peft_alone_cannot_load_says_that_nothing_was_uploaded(
    qpeft_cli, hub, base_folder, text, tmp_path
):
    data = f"--model {base_folder} --data {text} --seq-len 16 --steps 2 --method qaa"
    options = f"--target-modules q_proj --out {tmp_path / 'run'} --push-to-hub me/ana"
    shown = qpeft_cli(*f"train {data} {options}".split(), code=1)
    assert "nothing was uploaded" in " ".join(shown.stderr.split())
    assert hub.repository is None


@pytest.mark.parametrize("command", ["export", "train"])
@pytest.mark.parametrize("name", ["a/b/c", "../ana", "me/..", "n" * 10_000, "me/a na"])
def test_bad_names_of_repositories_are_refused_before_any_work(
    qpeft_cli, adapter_folder, base_folder, text, tmp_path, name, command
):
    out = tmp_path / "out"
    given = [adapter_folder] if command == "export" else ["--model", base_folder, "--data", text]
    qpeft_cli(command, *given, "--out", out, "--push-to-hub", name, code=2)
    assert not out.exists()
