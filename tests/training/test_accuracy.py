import warnings

import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification

from qpeft.training import TrainSettings
from qpeft.training.metrics import ClassificationScore, classification_loss, evaluate_classifier
from qpeft.training.tasks.text_classification import TextClassification

BASES = ["tiny_encoder", "tiny_model"]  # the second is a decoder, whose tokenizer has no padding token


def test_metrics_are_counted_over_examples():
    score = ClassificationScore(6.0, 4, 6)
    assert (score.loss, score.accuracy) == (1.0, 4 / 6)
    low, high = score.interval
    assert score.to_dict() == {
        "loss": 1.0,
        "accuracy": 4 / 6,
        "accuracy_low": low,
        "accuracy_high": high,
        "nats": 6.0,
        "n_correct": 4,
        "n_examples": 6,
        "mcc": None,
        "f1": None,
    }
    assert "MCC" not in score.described()  # of an earlier version's result


@pytest.fixture(params=BASES)
def task(request, opinion_files, tmp_path):
    folder, (train, dev) = request.getfixturevalue(request.param), opinion_files
    settings = TrainSettings(
        task="text-classification", model=str(folder), data=str(train), eval_data=str(dev), out=str(tmp_path / "run")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the pooler that the encoder lacks
        made = TextClassification(settings)
        made.model = made.load_base().eval()
    return made


def test_score_does_not_depend_on_padding(task):
    one = evaluate_classifier(task.model, task.evaluation, task.collate, batch_size=1)
    for batch_size in (3, 40):
        many = evaluate_classifier(task.model, task.evaluation, task.collate, batch_size)
        assert many.nats == pytest.approx(one.nats, rel=1e-6)
        assert (many.n_correct, many.n_examples) == (one.n_correct, one.n_examples) == (one.n_correct, 40)
        assert (many.mcc, many.f1) == (one.mcc, one.f1)


def test_score_equals_stock_transformers_on_single_texts(task):
    nats, n_correct = 0.0, 0
    labels, predictions = [], []
    for text, label in task.evaluation:
        with torch.no_grad():
            logits = task.model(input_ids=torch.tensor(text.ids)[None]).logits
        nats += cross_entropy(logits, torch.tensor([label])).item()
        n_correct += int(logits.argmax() == label)
        labels.append(label)
        predictions.append(int(logits.argmax()))
    score = task.score(task.model)
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.n_correct == n_correct
    assert score.mcc == matthews_corrcoef(labels, predictions)
    assert score.f1 == f1_score(labels, predictions, zero_division=0)


def test_logits_that_are_nan_predict_no_class(task):
    for parameter in task.model.parameters():
        parameter.data.fill_(torch.nan)
    score = task.score(task.model)
    assert (score.n_correct, score.n_examples) == (0, 40)


def test_scoring_does_not_change_the_model(task):
    task.model.train()
    task.score(task.model)
    assert task.model.training
    assert all(p.grad is None for p in task.model.parameters())


def test_loss_is_a_mean_over_the_whole_step():
    logits, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])

    class Output:
        def __init__(self, logits):
            self.logits = logits

    whole = classification_loss(Output(logits), labels)
    parts = [classification_loss(Output(logits[i : i + 2]), labels[i : i + 2], torch.tensor(6)) for i in (0, 2, 4)]
    assert whole.item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-6)
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-6)


def test_padding_token_is_set_for_a_decoder(tiny_model, opinion_files, tmp_path):
    settings = TrainSettings(
        task="text-classification", model=str(tiny_model), data=str(opinion_files[0]), out=str(tmp_path / "run")
    )
    task = TextClassification(settings)
    assert task.config.pad_token_id is None
    loaded = task.load_base()
    assert loaded.config.pad_token_id == task.tokenizer.eos_token_id == task.pad
    options = task.record().options()
    assert options == {"num_labels": 2, "pad_token_id": task.pad}
    stock = AutoModelForSequenceClassification.from_pretrained(tiny_model, **options)
    stock.load_state_dict(loaded.state_dict())
    batch = {name: part for name, part in task.collate(task.train[:4]).items() if name != "labels"}
    with torch.no_grad():
        assert torch.equal(stock.eval()(**batch).logits, loaded.eval()(**batch).logits)
