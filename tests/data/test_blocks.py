import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from folders import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from qpeft.errors import ConfigError, DataError, DataWarning
from qpeft_lab import RunSettings
from qpeft_lab.data.text import (
    IGNORED,
    TEMPLATES,
    Tokens,
    collate,
    cut,
    encode,
    load_blocks,
    mark_after_answer,
    note_unused,
    read_template,
)
from qpeft_lab.training.tasks import CausalLM

TEXTS = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), min_size=1, max_size=6
)
END = 0


def texts(*values):
    return [{"text": value} for value in values]


def some_tokens(length: int, first_id: int = 1) -> Tokens:
    ids = np.arange(first_id, first_id + length)
    return Tokens(
        ids,
        np.ones(length, dtype=bool),
        np.ones(length, dtype=np.int64),
        np.ones(length, dtype=bool),
    )


@given(values=TEXTS)
@settings(max_examples=30)
def test_bytes_of_tokens_add_up_to_the_text(tokenizer, values):
    encoded = encode(texts(*values), tokenizer)
    assert [int(tokens.n_bytes.sum()) for tokens in encoded] == [
        len(value.encode()) for value in values
    ]
    assert all((tokens.n_bytes >= 0).all() for tokens in encoded)


@given(values=TEXTS, seq_len=st.integers(2, 40))
@settings(max_examples=30)
def test_blocks_join_texts_with_one_end_of_text_token(tokenizer, values, seq_len):
    blocks = cut(texts(*values), seq_len, tokenizer)
    chain = [i for value in values for i in (END, *tokenizer(value)["input_ids"])][1:]
    whole = len(chain) - (len(chain) % seq_len == 1)  # a lone last token is predicted from nothing
    assert [i for block in blocks for i in block.ids] == chain[:whole]
    assert all(len(block.ids) == seq_len for block in blocks[:-1])


def test_spaces_missing_in_offsets_count_for_the_next_token(tokenizer):
    trimming = PreTrainedTokenizerFast.from_pretrained(tokenizer.name_or_path)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    offsets = trimming("the king", return_offsets_mapping=True)["offset_mapping"]
    assert sum(end - start for start, end in offsets) == len("the king") - 1
    assert encode(texts("the king"), trimming)[0].n_bytes.sum() == len("the king")


@pytest.mark.parametrize(
    "prompt, answer, scored", [("the king", " sings", " sings"), ("ki", "ng", "king")]
)
def test_only_answer_and_end_are_scored_and_a_token_that_spans_both_parts(
    tokenizer, prompt, answer, scored
):
    (tokens,) = encode([{"prompt": prompt, "completion": answer}], tokenizer)
    assert tokenizer.decode(tokens.ids) == f"{prompt}{answer}<end>"
    assert tokenizer.decode(tokens.ids[tokens.scored]) == f"{scored}<end>"
    assert tokens.n_bytes[tokens.scored].sum() == len(scored)


@pytest.fixture
def chat(tokenizer):
    chat = PreTrainedTokenizerFast.from_pretrained(tokenizer.name_or_path)
    chat.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}<end>{%"
        " endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return chat


@pytest.mark.parametrize("part, warns", [("train", True), ("reasoning", True), ("name", False)])
def test_part_of_a_message_that_the_template_does_not_read_is_named(chat, part, warns):
    chat.chat_template = chat.chat_template.replace("[{{ m.role }}]", "[{{ m.name or m.role }}]")
    rows = [{"messages": [{"role": "assistant", "content": "a", "weight": 1, part: False}]}]
    run = RunSettings(model="x", data="a.jsonl", out="y")
    with warnings.catch_warnings(record=True, action="always") as caught:
        note_unused(rows, run, chat)
    assert [f"have {part}, which" in str(each.message) for each in caught] == [True] * warns


ASKED = [{"prompt": "A fox", "completion": " jumps"}]


def with_special_token(tokenizer, single):
    """Its copy that adds the end-of-text token to every text."""
    adding = copy.deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(tokenizer.eos_token, END)]
    )
    return adding


def test_tokenizer_that_adds_the_end_by_itself_changes_nothing(tokenizer):
    """Otherwise two ends would be between texts, and none would be scored after an answer."""
    ending = with_special_token(tokenizer, f"$A {tokenizer.eos_token}")
    assert ending("A fox")["input_ids"][-1] == END

    for made in (lambda t: encode(ASKED, t), lambda t: cut(texts("A fox", "A dog"), 8, t)):
        for ours, usual in zip(made(ending), made(tokenizer), strict=True):
            for part, expected in zip(ours, usual, strict=True):
                np.testing.assert_array_equal(part, expected)
    assert encode(ASKED, ending)[0].scored[-1]


def test_tokenizer_that_adds_its_end_in_front_loses_no_token(tokenizer):
    """As OPT's."""
    beginning = with_special_token(tokenizer, f"{tokenizer.eos_token} $A")
    (tokens,) = encode(ASKED, beginning)
    assert tokens.ids.tolist() == [END, *encode(ASKED, tokenizer)[0].ids]


def test_only_assistant_messages_are_scored_and_an_end_follows_a_last_answer(chat):
    question = {"role": "user", "content": "see"}
    answer = {
        "role": "assistant",
        "content": "the bird",
    }
    (tokens,) = encode([{"messages": [question, answer] * 2}], chat)

    assert chat.decode(tokens.ids) == "[user]see[assistant]the bird<end>" * 2
    assert chat.decode(tokens.ids[tokens.scored]) == "the bird<end>" * 2

    chat.chat_template = chat.chat_template.replace("<end>", "")
    conversations = [[question], [question, answer, question], [question, answer]]
    asked, asked_again, answered = encode(
        [{"messages": messages} for messages in conversations], chat
    )

    assert not asked.scored.any()
    assert chat.decode(asked_again.ids[asked_again.scored]) == "the bird"
    assert chat.decode(answered.ids[answered.scored]) == "the bird<end>"


MESSAGES = [{"role": "user", "content": "see"}, {"role": "assistant", "content": "the bird"}] * 2
OPEN = "{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.mark.parametrize(
    "template, scored",
    [
        ("{usual}{% if add_generation_prompt %}<think>{% endif %}", "the bird<end>the bird<end>"),
        (
            "{usual}{% if not add_generation_prompt %}!{% endif %}",
            "the bird<end>the bird<end>",
        ),
        (  # of reasoning models: the last answer alone begins with an empty reasoning
            "{% for m in messages %}[{{ m.role }}]"
            "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
            "{{ m.content }}<end>{% endfor %}" + OPEN,
            "the bird<end><think></think>the bird<end>",
        ),
    ],
)
def test_place_of_an_answer_is_that_in_the_whole_conversation(chat, template, scored):
    """Templates add marks to the prompt of a generation, or to the last message, that the
    conversation lacks.
    """
    chat.chat_template = template.replace("{usual}", chat.chat_template)
    (tokens,) = encode([{"messages": MESSAGES}], chat)
    assert chat.decode(tokens.ids[tokens.scored]) == scored


@pytest.mark.parametrize("content", ["the bird", "the<end>bird", "", "end", "<"])
def test_answer_ends_with_the_end_of_text_token_of_the_template(chat, content):
    """What follows it there, such as ChatML's line break, is not scored, and there is no second
    end.
    """
    chat.chat_template = TEMPLATES["chatml"].replace("<|im_end|>", "<end>")
    question, answer = MESSAGES[:2]
    messages = [question, answer, question, {**answer, "content": content}]
    (tokens,) = encode([{"messages": messages}], chat)
    assert chat.decode(tokens.ids[tokens.scored]) == f"the bird<end>{content}<end>"
    assert chat.decode(tokens.ids) == chat.apply_chat_template(messages, tokenize=False)


MARKS = {  # a template and the mark after its answers
    "{% for m in messages %}{{ m.content }}[/A]\n{% endfor %}": "[/A]",
    "{% for m in messages %}{{ m.content }}<|x|><end>{% endfor %}bye": "<|x|><end>bye",
    "{% for m in messages %}{{ m.content }}<end>{% endfor %}": "",
    '{% for m in messages %}"{{ m.content }}"\n{% endfor %}': "",
    "{% for m in messages %}```{{ m.content }}```\n{% endfor %}": "",
    "{% for m in messages %}{{ m.content | tojson }}<|x|>{% endfor %}": "",
    "{{ raise_exception('no') }}": "",
    "{% if messages[0].role != 'system' %}{{ raise_exception('system') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}<|x|>\n{% endfor %}": "<|x|>",
}


@pytest.mark.parametrize("template", MARKS)
def test_mark_after_an_answer_is_what_no_answer_contains(chat, template):
    chat.chat_template = template
    assert mark_after_answer(chat) == MARKS[template]


def test_end_of_text_inside_of_an_answer_after_a_reasoning_is_no_end(chat):
    chat.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}<think></think>"
        "{% endif %}{{ m.content }}[/{{ m.role }}]{% endfor %}" + OPEN
    )
    answer = {"role": "assistant", "content": "the <end> bird"}
    (tokens,) = encode([{"messages": [MESSAGES[0], answer]}], chat)
    assert "bird[/assistant]" in chat.decode(tokens.ids[tokens.scored])


def test_answer_that_begins_like_what_the_template_opens_is_scored_whole(chat):
    chat.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    question, answer = MESSAGES[:2]
    (tokens,) = encode([{"messages": [question, {**answer, "content": "<th> bird"}]}], chat)
    assert chat.decode(tokens.ids[tokens.scored]) == "<th> bird<end>"


@pytest.mark.parametrize("content", ["the bird", "<", "end"])
def test_mark_between_two_answers_is_not_scored(chat, content):
    """Also not where the template begins the last answer alone with an empty reasoning."""
    chat.chat_template = (
        "{% for m in messages %}[{{ m.role }}]"
        "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
        "{{ m.content }}<end>{% endfor %}" + OPEN
    )
    question, answer = MESSAGES[:2]
    answers = [{**answer, "content": text} for text in (content, "a fox")]
    (tokens,) = encode([{"messages": [question, *answers]}], chat)
    assert chat.decode(tokens.ids[tokens.scored]) == f"{content}<end>a fox<end>"


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('no system role') }}",
        "{{ none.a.b }}",
        "{% for %}",
        "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else 'a king' }}{%"
        " endfor %}" + OPEN,
    ],
)
def test_template_that_is_missing_fails_or_changes_earlier_answers_is_refused(chat, template):
    chat.chat_template = template
    with pytest.raises(DataError, match="chat template"):
        encode([{"messages": MESSAGES}], chat)


@pytest.mark.parametrize("name", [*TEMPLATES, "FILE"])
def test_chat_template_can_be_given(tokenizer, tiny_model, tmp_path, name):
    if name == "FILE":
        (tmp_path / "own.jinja").write_text(TEMPLATES["chatml"].replace("<|im_start|>", "\n"))
        name = str(tmp_path / "own.jinja")
    rows = [{"messages": [{"role": "user", "content": f"see {n}"}, MESSAGES[1]]} for n in range(30)]
    asked = data(tmp_path, rows, chat_template=name, seq_len=64)
    asked.model = str(tiny_model)
    task = CausalLM(asked)

    assert tokenizer.decode(task.train[0].ids[task.train[0].scored]).startswith("the bird")

    (tmp_path / "adapter").mkdir()
    task.describe(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "chat_template.jinja").read_text() == read_template(name)
    with pytest.raises(ConfigError, match="did you mean 'chatml'"):
        read_template("chatlm")

    (tmp_path / "plain.txt").write_text("the bird and the fox " * 400)
    with pytest.warns(DataWarning, match="no messages"):
        load_blocks(replace(asked, data=str(tmp_path / "plain.txt")), 64, tokenizer)


def test_long_examples_are_truncated_or_left_out(tokenizer):
    rows = [{"prompt": "a ", "completion": "fox " * 20}, {"prompt": "fox " * 20, "completion": "a"}]
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        (block,) = cut(rows, 8, tokenizer)
    assert len(block.ids) == 8


def test_attention_mask_distinguishes_token_0_from_padding():
    block = some_tokens(3)._replace(ids=np.array([5, 0, 0]))
    batch = collate([block, some_tokens(4)])
    assert batch["input_ids"].tolist() == [[5, 0, 0, 0], [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 0, 0, IGNORED], [IGNORED, 2, 3, 4]]
    assert all(part.dtype == torch.int64 for part in batch.values())


def data(tmp_path, rows, **changes) -> RunSettings:
    path = write_rows(tmp_path / "data.jsonl", rows)
    return RunSettings(model="m", data=str(path), out="o", **changes)


def test_padded_rows_are_examples_also_empty_ones(tmp_path, tokenizer):
    rows = texts(*(f"{n} the king" if n % 2 else "" for n in range(60)))
    # a warning is an error
    blocks = load_blocks(data(tmp_path, rows, pad_rows=True), 16, tokenizer)
    assert [[len(block.ids) for block in part] for part in blocks] == [[16] * 57, [16] * 3]
    assert not blocks[0][0].attended.any()


# -- training and evaluation data


def held_out(tmp_path, tokenizer, rows, seq_len, **changes):
    parts = load_blocks(data(tmp_path, rows, **changes), seq_len, tokenizer)
    return [[tokenizer.decode(block.ids) for block in part] for part in parts]


def test_one_document_in_20_or_the_last_20th_of_the_blocks_is_held_out(tmp_path, tokenizer):
    train, evaluation = held_out(
        tmp_path, tokenizer, texts(*(f"{n} the king went" for n in range(40))), 8
    )
    assert "".join(evaluation) == "19 the king went<end>39 the king went"
    assert "19" not in "".join(train)

    text = texts("the king sings " * 70)
    whole = [tokenizer.decode(block.ids) for block in cut(text, 5, tokenizer)]
    train, evaluation = held_out(tmp_path, tokenizer, text, 5)

    assert [*train, *evaluation] == whole
    assert len(evaluation) == len(whole) // 20 > 1


def test_partial_block_is_evaluated_but_not_trained_and_blocks_are_limited(tmp_path, tokenizer):
    row = texts("the king sings " * 60)
    same = {"eval_data": str(tmp_path / "data.jsonl")}
    n = len(tokenizer(row[0]["text"])["input_ids"])
    seq_len = next(size for size in (7, 8, 9) if n % size)
    train, every = held_out(tmp_path, tokenizer, row, seq_len, eval_blocks=0, **same)

    assert "".join(every) == row[0]["text"]
    assert train == every[:-1]

    _, chosen = held_out(tmp_path, tokenizer, row, seq_len, eval_blocks=3, **same)
    assert chosen == [every[len(every) * i // 3] for i in range(3)]


PAIR = [{"prompt": "the", "completion": " fox"}]
LATE = [{"prompt": "fox " * 40, "completion": "a"}] * 2


@pytest.mark.parametrize(
    "rows, changes, named",
    [
        (texts("the king"), {}, "too little"),
        (texts("the king " * 6), {}, "too little"),
        (texts("the king"), {"pad_rows": True}, "too little"),
        (LATE, {}, "seq_len=16"),
        (PAIR, {}, "too little"),
        (PAIR, {"eval_data": LATE}, r"other\.jsonl"),
        (PAIR, {"pad_rows": True}, "pad_rows"),
    ],
)
def test_unusable_texts_are_refused(tmp_path, tokenizer, rows, changes, named):
    if "eval_data" in changes:
        changes = {"eval_data": str(write_rows(tmp_path / "other.jsonl", LATE))}
    with pytest.raises(DataError, match=named):
        load_blocks(data(tmp_path, rows, **changes), 16, tokenizer)
