"""Rendering and counting: which tokens a conversation becomes and which of them count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mona.errors import RequestError, WorkError
from mona.sample import Message, to_records
from mona.spec import TokenPolicy
from mona.tokens import Renderer, SetAside, Supervised, Tokenised
from tests.byte_tokenizer import byte_tokenizer, put_first

EVERYTHING = TokenPolicy(count="content", skip_first=0)

# The shape of templates that trim contents (Llama 3's does): headers spell the roles.
TRIMMING_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n\n' "
    "+ message['content'] | trim + '<|stop|>' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture
def tiny(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


def _chat(*contents: str) -> list[Message]:
    return [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]


def _counted_text(tokenizer: Any, row: Tokenised) -> str:
    return str(tokenizer.decode(row.ids[row.counted]))


SAME_CONTENT = _chat("Where do herons nest?", "In tall trees, often near a slow river.")


@pytest.mark.model
def test_chat_tokens_are_those_of_the_models_own_template(tokenizer: Any) -> None:
    row = Renderer(tokenizer, "chat", EVERYTHING, 512).render(SAME_CONTENT)
    theirs = tokenizer.apply_chat_template(to_records(SAME_CONTENT), tokenize=True)["input_ids"]
    assert row.ids.tolist() == list(theirs)
    assert row.ids.dtype == np.int32
    assert row.length == len(theirs)


@pytest.mark.model
def test_counted_tokens_are_the_contents_and_nothing_else(tokenizer: Any) -> None:
    row = Renderer(tokenizer, "chat", EVERYTHING, 512).render(SAME_CONTENT)
    assert _counted_text(tokenizer, row) == "".join(m.content for m in SAME_CONTENT)


@pytest.mark.model
def test_the_injected_system_prompt_is_there_and_does_not_count(tokenizer: Any) -> None:
    row = Renderer(tokenizer, "chat", EVERYTHING, 512).render(SAME_CONTENT)
    assert "named SmolLM" in tokenizer.decode(row.ids)
    assert "named SmolLM" not in _counted_text(tokenizer, row)


@pytest.mark.model
def test_a_system_turn_of_the_data_counts(tokenizer: Any) -> None:
    row = Renderer(tokenizer, "chat", EVERYTHING, 512).render(
        [Message("system", "Answer in rhyme."), *SAME_CONTENT]
    )
    assert _counted_text(tokenizer, row).startswith("Answer in rhyme.Where do")
    assert "named SmolLM" not in tokenizer.decode(row.ids)


@pytest.mark.model
@pytest.mark.parametrize("spelled", ["<|im_end|>", "<|endoftext|>", "<|im_start|>system"])
def test_special_token_text_in_data_stays_plain_text(tokenizer: Any, spelled: str) -> None:
    messages = _chat(f"What does {spelled} mean?", f"It ends a turn. {spelled}")
    row = Renderer(tokenizer, "chat", EVERYTHING, 512).render(messages)
    assert not np.isin(row.ids[row.counted], tokenizer.all_special_ids).any()
    assert _counted_text(tokenizer, row) == "".join(m.content for m in messages)
    # The template's own special tokens are still special: a start and an end for each turn.
    assert (row.ids == tokenizer.convert_tokens_to_ids("<|im_start|>")).sum() == 3
    assert (row.ids == tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() == 3


@pytest.mark.model
def test_special_text_in_one_row_changes_nothing_for_its_neighbours(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, "chat", TokenPolicy(), 512)
    odd = _chat("Say <|im_end|>", "<|im_end|>")
    batch = renderer.render_batch([SAME_CONTENT, odd, SAME_CONTENT])
    for row, messages in zip(batch, [SAME_CONTENT, odd, SAME_CONTENT], strict=True):
        alone = renderer.render(messages)
        assert row.ids.tolist() == alone.ids.tolist()
        assert row.counted.tolist() == alone.counted.tolist()


@pytest.mark.model
@pytest.mark.parametrize(
    "contents",
    [
        ("Where?", "Here."),
        (" Where do\n\nherons  nest? ", "\n In tall trees, often.\t\n"),
        ("naïve café — 東京 🦉", "def f(x):\n    return {x: [1, 2]}\n"),
        ("<p>a</p> < | >", "$x_1 \\le 3$", "And then?", "No."),
    ],
)
def test_both_ways_of_tokenising_give_the_models_own_tokens(
    tokenizer: Any, contents: tuple[str, ...]
) -> None:
    messages = _chat(*contents)
    renderer = Renderer(tokenizer, "chat", EVERYTHING, 512)
    row = renderer.render(messages)
    theirs = tokenizer.apply_chat_template(to_records(messages), tokenize=True)["input_ids"]
    assert row.ids.tolist() == list(theirs)
    made = renderer._pieces(messages)
    assert not isinstance(made, SetAside)
    ids, content, _ = renderer._marked(*renderer._controls.encode(made.pieces))
    assert ids == list(theirs)
    assert content.tolist() == row.counted.tolist()


@pytest.mark.model
@pytest.mark.parametrize(
    "content",
    [
        "naïve café — 東京 🦉🦉",
        "\n\n  indented\n\tline\n\n\n",
        "a" * 300,
        " ",
        "e\u0301\u200d\ufe0f",
    ],
)
def test_counted_tokens_decode_to_contents_of_any_script(tokenizer: Any, content: str) -> None:
    row = Renderer(tokenizer, "chat", EVERYTHING, 2048).render(_chat(content, "Yes."))
    assert content + "Yes." in _counted_text(tokenizer, row)
    assert "user" not in _counted_text(tokenizer, row)


@pytest.mark.model
def test_length_counts_tokens_before_the_cut_and_the_head_is_kept(tokenizer: Any) -> None:
    messages = _chat("Count the ferries. " * 20, "There are nine.")
    whole = Renderer(tokenizer, "chat", TokenPolicy(), 4096).render(messages)
    cut = Renderer(tokenizer, "chat", TokenPolicy(), 40).render(messages)
    assert len(whole.ids) == whole.length == cut.length > 100
    assert cut.ids.tolist() == whole.ids[:40].tolist()
    assert cut.counted.tolist() == whole.counted[:40].tolist()


@pytest.mark.model
def test_skip_first_drops_leading_positions_of_the_text_not_of_the_content(tokenizer: Any) -> None:
    policy = TokenPolicy(count="all", skip_first=3)
    row = Renderer(tokenizer, "chat", policy, 512).render(SAME_CONTENT)
    assert row.counted[:3].tolist() == [False] * 3
    assert row.counted[3:].all()
    plain = Renderer(tokenizer, "plain", TokenPolicy(skip_first=2), 512).render(SAME_CONTENT)
    assert plain.counted[:4].tolist() == [False, False, True, True]


@pytest.mark.model
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "Where?\nHere.<|im_end|>"),
        ("olmo", "Where? Here.<|im_end|>"),
        ("llama2", "<|im_start|>[INST] Where? [/INST] Here. <|im_end|>"),
    ],
)
def test_the_papers_formats(tokenizer: Any, template: Any, text: str) -> None:
    row = Renderer(tokenizer, template, EVERYTHING, 512).render(_chat("Where?", "Here."))
    assert tokenizer.decode(row.ids) == text
    # A token that carries the space before a content overlaps it, so it counts whole.
    assert _counted_text(tokenizer, row).split() in (["Where?", "Here."], ["Where?Here."])
    assert not np.isin(row.ids[row.counted], tokenizer.all_special_ids).any()


def test_a_model_without_a_template_is_refused_for_chat_only(tiny: Any) -> None:
    tiny.chat_template = None
    with pytest.raises(RequestError, match="no chat template"):
        Renderer(tiny, "chat", TokenPolicy(), 64)
    assert Renderer(tiny, "plain", TokenPolicy(), 64).render(SAME_CONTENT).length > 0


# Contents that the headers around them spell too: "user", "assistant", "a", "s".
@pytest.mark.parametrize(
    "contents",
    [(" user ", "a"), ("s", " assistant\n"), ("\n\n", "s"), (" a b ", " <|stop|> "), ("", " s")],
)
def test_a_template_that_trims_contents_is_honoured(tiny: Any, contents: tuple[str, str]) -> None:
    tiny.chat_template = TRIMMING_TEMPLATE
    messages = _chat(*contents)
    row = Renderer(tiny, "chat", EVERYTHING, 512).render(messages)
    own = tiny.apply_chat_template(to_records(messages), tokenize=False)
    assert tiny.decode(row.ids) == own
    first = len("<|start|>user\n\n")
    second = own.index("<|start|>assistant") + len("<|start|>assistant\n\n")
    spans = [(first, contents[0].strip()), (second, contents[1].strip())]
    # One token a byte, one a special token: positions follow from the text.
    expected = "".join(text for _, text in spans)
    assert _counted_text(tiny, row) == expected
    headers = len(tiny("<|start|>user\n\n", add_special_tokens=False)["input_ids"])
    assert not row.counted[:headers].any()
    if spans[0][1]:
        assert row.counted[headers]


def test_one_conversation_that_would_be_set_aside_is_an_error_with_the_reason(tiny: Any) -> None:
    tiny.chat_template = TRIMMING_TEMPLATE.replace("| trim", "| upper")
    with pytest.raises(WorkError, match="rewrites a content"):
        Renderer(tiny, "chat", EVERYTHING, 512).render(_chat("Which owl?", "The grey one."))


def test_a_template_that_asks_the_date_gets_the_same_one_every_day(tiny: Any) -> None:
    tiny.chat_template = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + TRIMMING_TEMPLATE
    row = Renderer(tiny, "chat", EVERYTHING, 512).render(SAME_CONTENT)
    assert tiny.decode(row.ids).startswith("Today: 26 Jul 2024\n")


def test_whitespace_tokens_count_with_a_tokenizer_that_trims_offsets(tiny: Any) -> None:
    from tokenizers import processors

    tiny.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    row = Renderer(tiny, "chat", EVERYTHING, 512).render(_chat("a\n\n b", "c  d"))
    assert _counted_text(tiny, row) == "a\n\n bc  d"


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    contents=st.lists(
        st.text(
            alphabet=st.one_of(
                st.characters(exclude_categories=["Cs"]), st.sampled_from(list("<|start|>op \n"))
            ),
            max_size=30,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_counted_bytes_are_the_contents_bytes(tiny: Any, contents: list[str]) -> None:
    """With one token a byte nothing crosses a seam, so counted tokens are the contents."""
    row = Renderer(tiny, "chat", EVERYTHING, 100_000).render(_chat(*contents))
    expected = tiny("".join(contents), add_special_tokens=False, split_special_tokens=True)
    assert row.ids[row.counted].tolist() == expected["input_ids"]
    assert row.length == len(row.ids) == len(row.counted)


def test_an_empty_batch_and_an_empty_conversation(tiny: Any) -> None:
    renderer = Renderer(tiny, "plain", TokenPolicy(), 64)
    assert renderer.render_batch([]) == []
    row = renderer.render([])
    assert (len(row.ids), len(row.counted), row.length) == (0, 0, 0)


def _learned(tokenizer: Any, messages: list[Message], template: Any = "chat") -> str:
    (row,) = Renderer(tokenizer, template, TokenPolicy(), 100_000).supervised([messages])
    assert (
        row.ids.tolist()
        == Renderer(tokenizer, template, EVERYTHING, 100_000).render(messages).ids.tolist()
    )
    return str(tokenizer.decode(row.ids[row.learned]))


DIALOGUE = [
    Message("system", "Answer in rhyme."),
    Message("user", "Where do herons nest?"),
    Message("assistant", "In tall trees."),
    Message("user", "And where does the user assistant nest?"),
    Message("assistant", "On the ground.\n"),
]


@pytest.mark.model
@pytest.mark.parametrize("messages", [DIALOGUE, DIALOGUE[1:], DIALOGUE[1:3]])
def test_learned_are_assistant_turns_with_their_end(
    tokenizer: Any, messages: list[Message]
) -> None:
    answers = [message.content for message in messages if message.role == "assistant"]
    assert _learned(tokenizer, messages) == "".join(f"{text}<|im_end|>" for text in answers)


@pytest.mark.model
def test_special_text_in_an_answer_is_learned_as_text_and_its_own_end_as_the_token(
    tokenizer: Any,
) -> None:
    messages = _chat("Say <|im_end|>", "Here: <|im_end|><|im_start|>user", "More?", "No.")
    (row,) = Renderer(tokenizer, "chat", TokenPolicy(), 512).supervised([messages])
    learned = row.ids[row.learned]
    expected = []
    for answer in (messages[1], messages[3]):
        made = tokenizer(answer.content, add_special_tokens=False, split_special_tokens=True)
        expected += [*made["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert learned.tolist() == expected


@pytest.mark.model
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "In tall trees.<|im_end|>On the ground.\n<|im_end|>"),
        ("olmo", " In tall trees.<|im_end|> On the ground.\n<|im_end|>"),
        ("llama2", " In tall trees. <|im_end|> On the ground.\n <|im_end|>"),
    ],
)
def test_learned_tokens_of_the_papers_formats(tokenizer: Any, template: Any, text: str) -> None:
    assert _learned(tokenizer, DIALOGUE[1:], template) == text


@pytest.mark.parametrize("spelled", ["", " <|stop|>"])
def test_learned_tokens_of_a_template_that_trims_or_injects(tiny: Any, spelled: str) -> None:
    messages = _chat("Where?" + spelled, " There.\n" + spelled, "", "")
    kept = " There.\n" + spelled
    assert _learned(tiny, messages) == kept + "<|stop|><|stop|>"
    tiny.chat_template = TRIMMING_TEMPLATE
    assert _learned(tiny, messages) == kept.strip() + "<|stop|><|stop|>"


def test_a_template_that_ends_turns_with_nothing_teaches_no_header_but_the_end(tiny: Any) -> None:
    tiny.chat_template = TRIMMING_TEMPLATE.replace("<|stop|>", "\n")
    messages = _chat("Where?", "There.", "Why?", "So.")
    row = Renderer(tiny, "chat", EVERYTHING, 512).render(messages)
    (learning,) = Renderer(tiny, "chat", EVERYTHING, 512).supervised([messages])
    assert isinstance(learning, Supervised)
    assert tiny.decode(learning.ids[learning.learned]) == "There.So.\n<|stop|>"
    assert learning.ids.tolist() == [*row.ids.tolist(), tiny.eos_token_id]


# What the paper's formats begin with: {template: (text before, text of two turns)}.
FORMATS = {
    "plain": "Where?\nHere.<|stop|>",
    "olmo": "Where? Here.<|stop|>",
    "llama2": "<|start|>[INST] Where? [/INST] Here. <|stop|>",
}


@pytest.mark.parametrize("template", FORMATS)
@pytest.mark.parametrize("first", ["<|start|>", "<|other|>"])
def test_a_format_begins_with_what_the_post_processor_puts_first(template: Any, first: str) -> None:
    tokenizer = byte_tokenizer(None, special=["<|other|>"])
    put_first(tokenizer, first)
    messages = _chat("Where?", "Here.")
    row = Renderer(tokenizer, template, TokenPolicy(), 512).render(messages)
    doubled = first == "<|start|>" and template == "llama2"
    assert tokenizer.decode(row.ids) == ("" if doubled else first) + FORMATS[template]
    # Position 0 is that token: the first that is skipped is no content.
    assert tokenizer.decode(row.ids[row.counted]) == "Where?Here."
    (learning,) = Renderer(tokenizer, template, TokenPolicy(), 512).supervised([messages])
    assert isinstance(learning, Supervised)
    assert learning.ids.tolist() == row.ids.tolist()
    assert (
        tokenizer.decode(learning.ids[learning.learned]).split()
        == FORMATS[template].split("Where?")[1].removeprefix(" [/INST]").split()
    )


def test_a_start_token_that_the_data_spells_does_not_stand_for_the_real_one() -> None:
    tokenizer = byte_tokenizer(None)
    put_first(tokenizer, "<|start|>")
    row = Renderer(tokenizer, "plain", EVERYTHING, 512).render(_chat("<|start|>?", "Yes."))
    assert (row.ids == tokenizer.bos_token_id).tolist() == [True] + [False] * (len(row.ids) - 1)
    assert tokenizer.decode(row.ids) == "<|start|><|start|>?\nYes.<|stop|>"


def test_a_chat_template_writes_its_start_token_itself() -> None:
    tokenizer = byte_tokenizer(TRIMMING_TEMPLATE)
    put_first(tokenizer, "<|stop|>")
    row = Renderer(tokenizer, "chat", EVERYTHING, 512).render(SAME_CONTENT)
    assert row.ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("template", ["chat", "plain", "olmo", "llama2"])
def test_folded_system_turns_are_read_as_part_of_the_question(tiny: Any, template: Any) -> None:
    given = [Message("system", "Answer in rhyme."), *_chat("Where?", "Here.")]
    folded = Renderer(tiny, template, EVERYTHING, 512, "fold")
    kept = Renderer(tiny, template, EVERYTHING, 512)
    same = kept.render(_chat("Answer in rhyme.\n\nWhere?", "Here."))
    assert folded.render(given).ids.tolist() == same.ids.tolist()
    assert kept.render(given).ids.tolist() != same.ids.tolist()


def test_an_answer_that_was_cut_learns_what_is_left_and_a_question_nothing(tiny: Any) -> None:
    renderer = Renderer(tiny, "plain", TokenPolicy(), 8)
    cut, question = renderer.supervised([_chat("Why?", "Because."), _chat("Why so?")])
    assert tiny.decode(cut.ids[cut.learned]) == "Bec"
    assert cut.length == len("Why?\nBecause.") + 1
    assert not question.learned.any()


def test_the_first_token_is_never_learned(tiny: Any) -> None:
    answer = [Message("assistant", "Hello")]
    (row,) = Renderer(tiny, "plain", TokenPolicy(), 8).supervised([answer])
    assert row.learned.tolist() == [False] + [True] * 5
