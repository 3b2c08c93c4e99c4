"""`qpeft export --push-to-hub` against a stub of the hub's endpoint in this process."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qpeft.core.model_card import users_card
from qpeft.files import read_json

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.usefixtures("verified_here"),
]


class Hub:
    """Accepts the creation of repositories and commits; keeps the files of `repository`."""

    def __init__(self):
        self.repository, self.files, self.tokens, self.status = None, {}, set(), 200
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers.get("Content-Length", 0))
                owner.tokens.add(self.headers["Authorization"])
                answer = owner.answer(self.path, self.rfile.read(length))
                body = json.dumps(answer).encode()
                self.send_response(owner.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def answer(self, path, body):
        if path == "/api/repos/create":
            self.repository = json.loads(body)
            return {"url": f"{self.url}/me/ana", "name": "me/ana"}
        if path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths
            ]
            return {"files": files}
        if path.endswith("/commit/main"):
            for row in map(json.loads, body.splitlines()):
                if row["key"] == "file":
                    value = row["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            commit = f"{self.url}/me/ana/commit/0123"
            return {"commitUrl": commit, "commitOid": "0123", "success": True}
        return {}  # the check of the card's metadata

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


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
    frames, maps = folder / "frames.safetensors", "--share type --target-modules q_proj,up_proj"
    answer(*f"frames {data} {maps} --out {frames}".split())
    options = f"--method quantum_peft --frames {frames} {maps} --r 2 --steps 2"
    answer(*f"train {data} {options} --out {folder / 'run'}".split())
    return folder / "run"


def test_stock_and_compact_form_are_uploaded_with_the_scores_of_the_run(answer, hub, run, tmp_path):
    pushed = answer("export", run, "--out", tmp_path / "out", "--push-to-hub", "me/ana")
    assert pushed["url"] == f"{hub.url}/me/ana"
    assert (hub.repository["name"], hub.repository["organization"]) == ("ana", "me")
    assert hub.tokens == {"Bearer hf_of_this_test"}
    weights = "adapter_model.safetensors"
    assert hub.files[weights] == (tmp_path / "out" / weights).read_bytes()
    assert hub.files[f"compact/{weights}"] == (run / "adapter" / weights).read_bytes()
    assert {path for path in hub.files if path.startswith("compact/")} == {
        "compact/adapter_config.json",
        f"compact/{weights}",
    }
    card = hub.files["README.md"].decode()
    result, config = read_json(run / "result.json"), read_json(run / "adapter/adapter_config.json")
    assert card.startswith((tmp_path / "out" / "README.md").read_text())
    losses = " | ".join(f"{result[when]['loss']:.4f}" for when in ("before", "after"))
    assert f"| {result['before']['unit']} | {losses} |" in card
    assert config["frames_sha256"] in card
    assert users_card(tmp_path / "out") is None


def test_compact_adapter_is_uploaded_without_scores_and_a_users_card_as_it_is(
    answer, hub, adapter_folder, tmp_path
):
    answer("export", adapter_folder, "--push-to-hub", "me/ana")
    assert b"## Scores" not in hub.files["README.md"]
    assert "compact/adapter_config.json" in hub.files
    out = tmp_path / "out"
    answer("export", adapter_folder, "--out", out)
    (out / "README.md").write_text("My card.")
    answer("export", adapter_folder, "--out", out, "--push-to-hub", "me/ana")
    assert hub.files["README.md"] == b"My card."


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


@pytest.mark.parametrize("name", ["a/b/c", "../ana", "me/..", "n" * 10_000, "me/a na"])
def test_bad_names_of_repositories_are_refused_before_any_work(
    qpeft_cli, adapter_folder, tmp_path, name
):
    out = tmp_path / "out"
    qpeft_cli("export", adapter_folder, "--out", out, "--push-to-hub", name, code=2)
    assert not out.exists()
