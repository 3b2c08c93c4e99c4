"""Regression of texts: trained on the squared error, scored on numbers, loaded by stock transformers and PEFT."""

import json
import math

import pytest
import torch
from peft import PeftModel
from runs import Killed, assert_same_result, kill_at
from scipy.stats import pearsonr, spearmanr
from tiny_models import opinions
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from qpeft.errors import ConfigError, DataError
from qpeft.training import TrainSettings, train
from qpeft.training.metrics import RegressionScore, evaluate_regression, regression_loss
from qpeft.training.result import read_result
from qpeft.training.tasks.text_regression import TextRegression

pytestmark = [
    pytest.mark.filterwarnings("ignore:the base model has no weights for"),
    pytest.mark.filterwarnings("ignore:.* are also training data"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


def write(path, n, seed=0):
    """Texts whose number is 1 for one opinion and -2 for the other, and a hundredth for each word."""
    rows = [(text, len(text.split()) / 100 + (1 if name == "good" else -2)) for text, name in opinions(n, seed)]
    path.write_text("".join(json.dumps({"text": text, "label": number}) + "\n" for text, number in rows))
    return path, rows


@pytest.fixture
def settings(tiny_encoder, tmp_path):
    def make(out="run", **changes) -> TrainSettings:
        data, dev = write(tmp_path / "train.jsonl", 96)[0], write(tmp_path / "dev.jsonl", 40, seed=1)[0]
        paths = {"model": str(tiny_encoder), "data": str(data), "eval_data": str(dev), "out": str(tmp_path / out)}
        chosen = {
            "method": "qpa",
            "method_settings": {"r": 2, "chunk_size": 32, "hidden": (6, 5)},
            "steps": 60,
            "lr": 3e-3,
        }
        return TrainSettings(
            **{"task": "text-regression", **paths, **chosen, "batch_size": 16, "eval_every": 30, **changes}
        )

    return make


def test_numbers_are_learned_and_stock_predictions_have_the_reported_scores(settings, tiny_encoder, tmp_path):
    result = train(settings())
    assert result.after.loss < 0.5 < result.before.loss
    texts, numbers = zip(*write(tmp_path / "dev.jsonl", 40, seed=1)[1], strict=True)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=1)
    stock = PeftModel.from_pretrained(base, result.exported).eval()
    batch = AutoTokenizer.from_pretrained(tiny_encoder)(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        predictions = stock(**batch).logits.squeeze(-1)
        stock_loss = stock(**batch, labels=torch.tensor(numbers)).loss.item()
    stored = json.loads((result.out / "result.json").read_text())["after"]
    assert stored["pearson"] == pytest.approx(pearsonr(predictions, numbers).statistic, abs=1e-4)
    assert stored["spearman"] == pytest.approx(spearmanr(predictions, numbers).statistic, abs=2e-2)
    assert result.after.loss == pytest.approx(stock_loss, rel=1e-3)
    assert result.after.pearson > 0.9
    assert read_result(result.out / "result.json").after == result.after


def test_killed_run_resumes_with_the_same_result(settings):
    every = {"steps": 6, "eval_every": 2, "save_every": 2}
    whole = train(settings("whole", **every))
    with pytest.raises(Killed):
        train(settings("killed", **every), kill_at(5))
    assert_same_result(whole.out, train(settings("killed", **every)).out)


@pytest.mark.parametrize(
    ("label", "shown"),
    [("good", "'good'"), (None, "nothing"), (math.nan, "nan"), ("nan", "'nan'"), (math.inf, "inf"), (True, "True")],
)
def test_label_that_is_no_number_is_named_with_its_row(settings, tmp_path, label, shown):
    rows = [{"text": "the king", "label": 1}, {"text": "a fox", "label": "2.5"}, {"text": "a bird", "label": label}]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=rf"bad.jsonl, row 3: the label is {shown}; give each example a finite number"):
        TextRegression(settings(data=str(tmp_path / "bad.jsonl")))


@pytest.mark.parametrize("label", [1e308, "-1e30", 1.1e15, 10**400])
def test_label_whose_square_overflows_is_refused_with_its_row(settings, tmp_path, label):
    rows = [{"text": "the king", "label": 1e15}, {"text": "a fox", "label": label}]
    (tmp_path / "large.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"large.jsonl, row 2: the label is"):
        TextRegression(settings(data=str(tmp_path / "large.jsonl")))


def test_text_that_no_tokenizer_can_encode_is_refused_with_its_row(settings, tmp_path):
    rows = [{"text": "the king", "label": 1}, {"text": "a \ud800 fox", "label": 2}]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="row 2 is not valid text"):
        TextRegression(settings(data=str(tmp_path / "bad.jsonl")))


def test_every_twentieth_example_is_held_out(settings, tmp_path):
    task = TextRegression(settings(eval_data=None))
    assert [label for _, label in task.evaluation] == [row[1] for row in write(tmp_path / "x.jsonl", 96)[1][19::20]]
    assert len(task.train) == 92


def test_equal_predictions_have_no_correlation_and_are_stored(settings):
    task = TextRegression(settings())
    model = task.load_base()
    torch.nn.init.zeros_(model.classifier.weight)
    score = task.score(model)
    assert (score.pearson, score.spearman) == (None, None)
    assert score.described()["Pearson"] == "undefined"
    assert json.dumps(score.to_dict(), allow_nan=False)


def test_head_that_gives_constants_trains_to_a_result_without_nan(settings, tmp_path):
    data, _ = write(tmp_path / "train.jsonl", 96)
    one = json.loads(data.read_text().splitlines()[0])
    (tmp_path / "same.jsonl").write_text((json.dumps(one) + "\n") * 4)
    result = train(settings(eval_data=str(tmp_path / "same.jsonl"), steps=2))
    assert result.after.pearson is None
    for file in ("result.json", "metrics.jsonl"):
        assert "NaN" not in (result.out / file).read_text()
    assert read_result(result.out / "result.json").after == result.after


def test_loss_is_the_mean_squared_error_of_the_whole_step():
    logits, labels = torch.randn(6, 1), torch.randn(6)

    class Output:
        def __init__(self, logits):
            self.logits = logits

    parts = [regression_loss(Output(logits[i : i + 2]), labels[i : i + 2], torch.tensor(6)) for i in (0, 2, 4)]
    expected = (logits.squeeze(-1) - labels).square().mean().item()
    assert sum(part.item() for part in parts) == pytest.approx(expected, rel=1e-6)
    assert regression_loss(Output(logits), labels).item() == pytest.approx(expected, rel=1e-6)


def test_label_that_the_trainer_ignores_is_counted(settings, tmp_path):
    (tmp_path / "low.jsonl").write_text('{"text": "the king", "label": -100}\n{"text": "a fox", "label": 1}\n')
    task = TextRegression(settings(data=str(tmp_path / "low.jsonl")))
    labels = task.collate(task.train)["labels"]
    assert labels.ne(-100).all()
    assert labels.tolist() == pytest.approx([-100, 1])


def test_score_does_not_depend_on_the_batch_size(settings):
    task = TextRegression(settings())
    model = task.load_base()
    one, many = (evaluate_regression(model, task.evaluation, task.collate, size) for size in (1, 40))
    assert one.squared_error == pytest.approx(many.squared_error, rel=1e-5)
    assert one.spearman == pytest.approx(many.spearman, abs=1e-3)
    assert isinstance(one, RegressionScore)


def test_label_smoothing_of_numbers_is_refused(settings):
    with pytest.raises(ConfigError, match="label_smoothing is for classes and tokens, not for text-regression"):
        settings(label_smoothing=0.1).check()
