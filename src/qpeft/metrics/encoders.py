"""BERTScore with an encoder from a local folder."""

from __future__ import annotations

from pathlib import Path

from qpeft.errors import InputError
from qpeft.metrics.words import References, Texts, check_texts

_MAX_LENGTH = 2**31 - 1  # the limit of the tokenizers library; transformers stores a larger number for "unknown"


def bertscore(hypotheses: Texts, references: References, encoder: str | Path) -> float:
    """BERTScore's F1 by bert-score, with the last layer of an encoder: mean over the texts; an empty text scores 0.

    Args:
        hypotheses: The texts to score.
        references: One or more references of each text.
        encoder: Folder of the encoder; it is never downloaded.

    Raises:
        DataError: no list of texts, another number of lists of references, or a text without any.
        InputError: the folder has no usable encoder, or the package bert-score is missing.
    """
    check_texts(hypotheses, references)
    n_layers = encoder_layers(Path(encoder))
    try:
        from bert_score import score  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise InputError(
            "BERTScore needs the package bert-score: pip install 'qpeft[bertscore]', or pip install bert-score"
        ) from error
    written = [(text, list(own)) for text, own in zip(hypotheses, references, strict=True) if text.strip()]
    if not written:
        return 0.0
    texts, own = zip(*written, strict=True)
    _, _, f1 = score(list(texts), list(own), model_type=str(encoder), num_layers=n_layers)
    return f1.double().sum().item() / len(hypotheses)


def encoder_layers(folder: Path) -> int:
    """The number of layers of the encoder for BERTScore. Raises InputError for an unusable encoder.

    bert-score loads it again, without a check of its weights.
    """
    from transformers import AutoModel

    from qpeft.core.base_model import load_tokenizer, load_weights, refuse_lacking

    if not (folder / "config.json").is_file():
        raise InputError(f"bertscore_model={folder} is no folder of an encoder; it needs config.json and the weights")
    try:
        tokenizer = load_tokenizer(str(folder))
        encoder, lacking, others = load_weights(AutoModel, str(folder), "float32", False)
        refuse_lacking(str(folder), {name for name in lacking | others if not name.startswith("pooler.")})  # not used
    except InputError as error:
        raise InputError(f"bertscore_model={folder} cannot be used: {error}") from error
    if tokenizer.model_max_length > _MAX_LENGTH:
        raise InputError(
            f"the tokenizer of bertscore_model={folder} has no maximum length; set model_max_length in its "
            "tokenizer_config.json, to 512 for most encoders"
        )
    return encoder.config.num_hidden_layers
