import json
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.errors import DataError
from qpeft.training import TrainSettings
from qpeft.training.blocks import IGNORED, Blocks, collate, cut, load_blocks
from qpeft.training.encoding import Tokens, encode

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), min_size=1, max_size=6)
END = 0


def texts(*values):
    return [{"text": value} for value in values]


def some_tokens(length: int, first_id: int = 1) -> Tokens:
    ids = np.arange(first_id, first_id + length)
    return Tokens(ids, np.ones(length, dtype=bool), np.ones(length, dtype=np.int64))


@given(values=TEXTS)
@settings(max_examples=60)
def test_bytes_of_tokens_add_up_to_the_text(tokenizer, values):
    encoded = encode(texts(*values), tokenizer)
    assert [int(tokens.n_bytes.sum()) for tokens in encoded] == [len(value.encode()) for value in values]
    assert all((tokens.n_bytes >= 0).all() for tokens in encoded)


@given(values=TEXTS, seq_len=st.integers(2, 40))
@settings(max_examples=60)
def test_blocks_join_texts_with_one_end_of_text_token(tokenizer, values, seq_len):
    blocks = cut(texts(*values), seq_len, tokenizer)
    chain = [END]
    for value in values:
        chain += [*tokenizer(value)["input_ids"], END]
    chain = chain[1:-1]
    whole = len(chain) - (len(chain) % seq_len == 1)  # a lone last token is predicted from nothing
    assert [i for block in blocks for i in block.ids] == chain[:whole]
    assert all(len(block.ids) == seq_len for block in blocks[:-1])


@given(values=TEXTS, separator=st.sampled_from(["", "\n\n"]))
@settings(max_examples=30)
def test_blocks_join_texts_with_a_separator(tokenizer, values, separator):
    values = ["", *values, ""]
    blocks = cut(texts(*values), 8, tokenizer, separator=separator)
    chain = tokenizer(separator.join(values))["input_ids"]
    whole = len(chain) - (len(chain) % 8 == 1)  # a lone last token is predicted from nothing
    assert [i for block in blocks for i in block.ids] == chain[:whole]


def test_prompts_have_no_separator_and_no_padded_rows(tokenizer):
    rows = [{"prompt": "the", "completion": " fox"}]
    with pytest.raises(DataError, match="separator is for rows of text; the data has prompts or messages"):
        cut(rows, 8, tokenizer, separator="")
    with pytest.raises(DataError, match="pad_rows is for rows of text"):
        cut(rows, 8, tokenizer, pad_rows=True)


def test_spaces_missing_in_offsets_count_for_the_next_token(tokenizer):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    trimming = PreTrainedTokenizerFast.from_pretrained(tokenizer.name_or_path)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    offsets = trimming("the king", return_offsets_mapping=True)["offset_mapping"]
    assert sum(end - start for start, end in offsets) == len("the king") - 1
    assert encode(texts("the king"), trimming)[0].n_bytes.sum() == len("the king")


def test_validation_data_that_are_training_data_are_reported(tiny_model, text_file, tokenizer, tmp_path):
    (copy := tmp_path / "copy.txt").write_bytes(text_file.read_bytes())
    asked = TrainSettings(model=str(tiny_model), data=str(text_file), eval_data=str(copy), out="", eval_blocks=0)
    with pytest.warns(UserWarning, match="22 of 23 evaluation blocks are also training data"):
        load_blocks(asked, 64, tokenizer)


def test_shifted_copy_of_the_training_data_is_reported(tiny_model, tokenizer, tmp_path):
    text = "".join(f"The bird number {n} sings in the wood at night.\n" for n in range(90))
    (data := tmp_path / "text.txt").write_text(text)
    (copy := tmp_path / "copy.txt").write_text(f"x{text}")
    asked = TrainSettings(model=str(tiny_model), data=str(data), eval_data=str(copy), out="", eval_blocks=0)
    with pytest.warns(UserWarning, match="89 of 90 long lines of the evaluation data are also training data"):
        load_blocks(asked, 64, tokenizer)


def test_prompt_is_not_scored_and_answer_has_an_end(tokenizer):
    row = {"prompt": "the king", "completion": " sings"}
    (tokens,) = encode([row], tokenizer)
    assert tokenizer.decode(tokens.ids[tokens.scored]) == " sings<end>"
    assert tokenizer.decode(tokens.ids[~tokens.scored]) == "the king"
    assert tokens.n_bytes[tokens.scored].sum() == len(" sings")


def test_token_spanning_prompt_and_answer_is_scored(tokenizer):
    together = tokenizer("king")["input_ids"]
    assert len(together) == 1
    (tokens,) = encode([{"prompt": "ki", "completion": "ng"}], tokenizer)
    assert tokens.ids.tolist() == [*together, END]
    assert tokens.scored.all()


@pytest.fixture
def chat(tokenizer):
    from transformers import PreTrainedTokenizerFast

    chat = PreTrainedTokenizerFast.from_pretrained(tokenizer.name_or_path)
    chat.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return chat


def test_only_assistant_messages_are_scored(chat):
    messages = [
        {"role": "user", "content": "see the fox"},
        {"role": "assistant", "content": "the bird"},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "a king"},
    ]
    (tokens,) = encode([{"messages": messages}], chat)
    assert chat.decode(tokens.ids) == "[user]see the fox[assistant]the bird<end>[user]and[assistant]a king<end>"
    assert chat.decode(tokens.ids[tokens.scored]) == "the bird<end>a king<end>"


def test_end_of_text_follows_only_an_answer(chat):
    question, answer = {"role": "user", "content": "see"}, {"role": "assistant", "content": "the bird"}
    chat.chat_template = chat.chat_template.replace("<end>", "")
    conversations = [[question], [question, answer, question], [question, answer]]
    asked, asked_again, answered = encode([{"messages": messages} for messages in conversations], chat)
    assert not asked.scored.any()
    assert chat.decode(asked_again.ids) == "[user]see[assistant]the bird[user]see"
    assert chat.decode(asked_again.ids[asked_again.scored]) == "the bird"
    assert chat.decode(answered.ids[answered.scored]) == "the bird<end>"


def test_place_of_an_answer_is_that_in_the_whole_conversation(chat):
    """Templates add a mark to the prompt of a generation, or to the last message, that the conversation lacks."""
    usual = chat.chat_template
    messages = [{"role": "user", "content": "see"}, {"role": "assistant", "content": "the bird"}] * 2
    marks = ("{% if add_generation_prompt %}<think>{% endif %}", "{% if not add_generation_prompt %}!{% endif %}")
    for mark in marks:
        chat.chat_template = usual + mark
        (tokens,) = encode([{"messages": messages}], chat)
        assert chat.decode(tokens.ids[tokens.scored]).replace("!<end>", "") == "the bird<end>the bird<end>"


def test_mark_of_the_last_answer_moves_no_earlier_answer(chat):
    """Templates of reasoning models begin the last answer alone with an empty reasoning."""
    messages = [{"role": "user", "content": "see"}, {"role": "assistant", "content": "the bird"}] * 2
    chat.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
        "{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (tokens,) = encode([{"messages": messages}], chat)
    assert chat.decode(tokens.ids[tokens.scored]) == "the bird<end><think></think>the bird<end>"


def test_template_that_changes_earlier_answers_is_refused(chat):
    messages = [{"role": "user", "content": "see"}, {"role": "assistant", "content": "the bird"}] * 2
    chat.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content if loop.last or m.role == 'user' else 'a king' }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    encode([{"messages": messages[:2]}], chat)
    with pytest.raises(DataError, match="changes earlier answers when a conversation continues"):
        encode([{"messages": messages}], chat)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system role') }}", "{{ none.a.b }}", "{% for %}", "{{ 1/0 }}"]
)
def test_template_that_fails_names_the_messages(chat, template):
    chat.chat_template = template
    with pytest.raises(DataError, match=r"chat template of the tokenizer fails for the messages .*see the fox"):
        encode([{"messages": [{"role": "system", "content": "see the fox"}]}], chat)


def test_messages_need_a_chat_template(tokenizer):
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        encode([{"messages": [{"role": "user", "content": "x"}]}], tokenizer)


def test_long_examples_are_truncated_or_left_out(tokenizer):
    rows = [{"prompt": "a ", "completion": "fox " * 20}, {"prompt": "fox " * 20, "completion": "a"}]
    with pytest.warns(
        UserWarning, match="1 of 2 rows of the data are left out: no answer begins within seq_len=8 tokens"
    ):
        (block,) = cut(rows, 8, tokenizer)
    assert len(block.ids) == 8


def test_attention_mask_distinguishes_token_0_from_padding():
    block = Tokens(np.array([5, 0, 0]), np.ones(3, dtype=bool), np.ones(3, dtype=np.int64))
    batch = collate([block, some_tokens(4)])
    assert batch["input_ids"].tolist() == [[5, 0, 0, 0], [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 0, 0, IGNORED], [IGNORED, 2, 3, 4]]
    assert all(part.dtype == torch.int64 for part in batch.values())


def data(tmp_path, rows, **changes) -> TrainSettings:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return TrainSettings(model="m", data=str(path), out="o", **changes)


def words(block: Tokens, tokenizer) -> str:
    return tokenizer.decode(block.ids)


def test_one_document_in_20_is_held_out(tmp_path, tokenizer):
    rows = texts(*(f"{n} the king went into the wood" for n in range(40)))
    blocks = load_blocks(data(tmp_path, rows), 8, tokenizer)
    held_out = "".join(words(block, tokenizer) for block in blocks.evaluation)
    assert held_out == "19 the king went into the wood<end>39 the king went into the wood"
    assert "19" not in "".join(words(block, tokenizer) for block in blocks.train)
    assert {len(block.ids) for block in blocks.train} == {8}


@pytest.mark.filterwarnings("ignore:.* are also training data")
def test_last_20th_of_the_blocks_is_held_out_of_few_documents(tmp_path, tokenizer):
    whole = cut(texts("the king sings " * 70), 5, tokenizer)
    assert len(whole) > 40
    blocks = load_blocks(data(tmp_path, texts("the king sings " * 70)), 5, tokenizer)
    assert len(blocks.evaluation) == len(whole) // 20
    np.testing.assert_array_equal(blocks.evaluation[-1].ids, whole[-1].ids)
    assert len(blocks.train) == len(whole) - len(blocks.evaluation)


@pytest.mark.filterwarnings("ignore:.* are also training data")
def test_partial_block_is_evaluated_but_not_trained(tmp_path, tokenizer):
    row = texts("the king sings " * 9)
    n = len(tokenizer(row[0]["text"])["input_ids"])
    blocks = load_blocks(data(tmp_path, row, eval_data=str(tmp_path / "data.jsonl")), n // 3 - 1, tokenizer)
    lengths = [len(block.ids) for block in blocks.evaluation]
    assert sum(lengths) == n
    assert lengths[-1] < lengths[0]
    assert [len(block.ids) for block in blocks.train] == lengths[:-1]


@pytest.mark.filterwarnings("ignore:.* are also training data")
def test_evaluation_blocks_are_limited_and_evenly_spaced(tmp_path, tokenizer):
    settings = data(tmp_path, texts("the king sings " * 60), eval_data=str(tmp_path / "data.jsonl"), eval_blocks=3)
    chosen = load_blocks(settings, 5, tokenizer).evaluation
    settings.eval_blocks = 0
    every = load_blocks(settings, 5, tokenizer).evaluation
    assert [block.ids.tolist() for block in chosen] == [every[len(every) * i // 3].ids.tolist() for i in range(3)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (texts("the king"), "has 2 tokens, too few for one training block and one evaluation block of seq_len=16"),
        (texts("the king " * 6), "too few for one training block"),
        ([{"prompt": "fox " * 40, "completion": "a"}] * 2, "no answer in"),
        ([{"prompt": "the", "completion": " fox"}], "1 of 1 have an answer within seq_len=16"),
    ],
)
def test_too_little_text_is_refused(tmp_path, tokenizer, rows, message):
    with pytest.raises(DataError) as refused:
        load_blocks(data(tmp_path, rows), 16, tokenizer)
    assert message in str(refused.value)


def test_one_padded_row_is_too_little(tmp_path, tokenizer):
    with pytest.raises(DataError, match="has 1 row, too few for training and evaluation; set eval_data"):
        load_blocks(data(tmp_path, texts("the king"), pad_rows=True), 16, tokenizer)


def test_empty_rows_of_both_parts_are_not_reported_as_shared(tmp_path, tokenizer):
    rows = texts(*(f"{n} the king" if n % 2 else "" for n in range(60)))
    blocks = load_blocks(data(tmp_path, rows, pad_rows=True), 16, tokenizer)  # a warning is an error
    assert (len(blocks.train), len(blocks.evaluation)) == (57, 3)


def test_validation_data_without_tokens_to_score_is_refused(tmp_path, tokenizer):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "fox " * 40, "completion": "a"}))
    settings = data(tmp_path, [{"prompt": "the", "completion": " fox"}], eval_data=str(other))
    with pytest.raises(DataError, match=r"other\.jsonl has no token to score within seq_len=16"):
        load_blocks(settings, 16, tokenizer)


def test_hash_depends_on_tokens_marks_and_split():
    one, two = some_tokens(4), some_tokens(4, first_id=9)
    unmarked = one._replace(scored=np.array([True, False, True, True]))
    hashes = {
        Blocks(train, evaluation).sha256()
        for train, evaluation in [([one], [two]), ([two], [one]), ([unmarked], [two]), ([one.cut(0, 3)], [two])]
    }
    assert len(hashes) == 4
    assert Blocks([one], [two]).sha256() == Blocks([some_tokens(4)], [two]).sha256()


def test_ctrl_c_does_not_wait_for_the_tokenizer():
    released = threading.Event()

    class Slow(SimpleNamespace):
        def __call__(self, texts, **_):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            released.wait()
            raise ValueError("too late")

    with pytest.raises(KeyboardInterrupt):
        encode(texts("the king"), Slow(is_fast=True, eos_token_id=END))
    released.set()
