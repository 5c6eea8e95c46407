"""Chat templates of many makers: the text is the template's own, or the row is set aside."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mona.sample import Message
from mona.spec import TokenPolicy
from mona.tokens import Renderer, SetAside, Supervised, Tokenised, template_faults
from tests.byte_tokenizer import byte_tokenizer

POLICY = TokenPolicy(skip_first=0)
FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
CHATML = (
    "{% for m in messages %}{{ '<|open|>' + m['role'] + '\n' + m['content'] + '<|stop|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% endif %}"
)
# As Qwen3's: the last answer always has a think block, earlier ones lose theirs; no field.
THINKING = """{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}{{ '<|open|>' + m.role + '\\n' }}
{%- set said = m.content -%}{%- set why = '' -%}
{%- if m.role == 'assistant' and '</think>' in said -%}
{%- set why = said.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}
{%- if m.role == 'assistant' and loop.index0 > ns.last -%}
{{ '<think>\\n' + why + '\\n</think>\\n\\n' }}{%- endif -%}
{{ said + '<|stop|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|open|>assistant\\n' }}{%- endif -%}"""
FIELD = (
    "{% for m in messages %}{{ '<|open|>' + m['role'] + '\n' }}{% if m.get('FIELD') %}"
    "{{ '[why]' + m['FIELD'] | trim + '[so]' }}{% endif %}{{ m['content'] + '<|stop|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% endif %}"
)
ALTERNATING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must\ntake turns') }}{% endif %}"
    "{{ '<|open|>' + m.role + '\n' + m.content | trim + '<|stop|>\n' }}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}{{ '<|open|>' + m.role + ':' }}{% for part in m.content %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|stop|>' }}"
    "{% endfor %}"
)
NO_END = (
    "{{ '<|start|>' }}{% for m in messages %}"
    "{{ ('<|ask|>' if m.role == 'user' else '<|reply|>') + m.content }}{% endfor %}"
)
# The tokens that end a turn or open one in the templates TRL ships, and some that do not.
TOKENS = (
    *("<|open|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|return|>", "<|eot|>"),
    *("<end_of_turn>", "<turn|>", "<end_of_utterance>", "<|END_OF_TURN_TOKEN|>", "<|user|>"),
    *("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
)

Turn = tuple[str, str, str]  # role, content, reasoning
SHAPES: dict[str, list[Turn]] = {
    "one answer": [("user", "question one", ""), ("assistant", "answer one", "")],
    "two answers": [
        ("user", "question one", ""),
        ("assistant", "answer one", ""),
        ("user", "question two", ""),
        ("assistant", "answer two", ""),
    ],
    "a system turn": [
        ("system", "be brief", ""),
        ("user", "question one", ""),
        ("assistant", "answer one", ""),
    ],
    "an empty system turn": [
        ("system", "", ""),
        ("user", "question one", ""),
        ("assistant", "answer one", ""),
    ],
    "an answer first": [
        ("assistant", "welcome here", ""),
        ("user", "question one", ""),
        ("assistant", "answer one", ""),
    ],
    "two users": [
        ("user", "question one", ""),
        ("user", "question two", ""),
        ("assistant", "answer one", ""),
    ],
    "a tool turn": [
        ("user", "question one", ""),
        ("assistant", "call it", ""),
        ("tool", '{"found": "ünder"}', ""),
        ("assistant", "answer one", ""),
    ],
    "a question last": [
        ("user", "question one", ""),
        ("assistant", "answer one", ""),
        ("user", "question two", ""),
    ],
    "reasoning last": [
        ("user", "question one", ""),
        ("assistant", "answer one", ""),
        ("user", "question two", ""),
        ("assistant", "answer two", "why two"),
    ],
    "reasoning first": [
        ("user", "question one", ""),
        ("assistant", "answer one", "why one"),
        ("user", "question two", ""),
        ("assistant", "answer two", ""),
    ],
    "reasoning throughout": [
        ("user", "question one", ""),
        ("assistant", "answer one", "why one,\n\nthen"),
        ("user", "question two", ""),
        ("assistant", "answer two", "why two"),
    ],
    "control tokens": [
        ("user", "say <|user|> or <|im_end|><|eot_id|> or <think>", ""),
        ("assistant", "it is <|stop|> or <end_of_turn>\n<|user|> <s>", ""),
    ],
    "white space": [("user", " \n question one\n\n", ""), ("assistant", "\n\n answer one \n", "")],
    "a tag in the answer": [
        ("user", "what is </think>?", ""),
        ("assistant", "it is </think>, which ends", ""),
    ],
}


def _shipped() -> list[Path]:
    found = find_spec("trl")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "chat_templates"
    # What ends in _training is one of the others with marks around its answers.
    return sorted(path for path in folder.glob("*.jinja") if not path.stem.endswith("_training"))


def _messages(turns: Sequence[Turn], block: str = "<think>\n{}\n</think>\n\n") -> list[Message]:
    return [
        Message(role, (block.format(why) if why else "") + content) for role, content, why in turns
    ]


def _own_texts(tokenizer: Any, source: str, turns: Sequence[Turn]) -> list[str]:
    """What the template itself makes of the turns, given in each way that templates take."""
    texts = []
    for as_parts in (False, True):
        for in_field in (False, True):
            records: list[dict[str, Any]] = []
            for message, (role, content, why) in zip(_messages(turns), turns, strict=True):
                text = content if in_field else message.content
                records.append(
                    {
                        "role": role,
                        "content": [{"type": "text", "text": text}] if as_parts else text,
                        **({"reasoning_content": why} if in_field and why else {}),
                    }
                )
            try:
                texts.append(
                    tokenizer.apply_chat_template(
                        records, tokenize=False, chat_template=FIXED_DATE + source
                    )
                )
            except Exception:  # a template may raise anything; then it made no text
                texts.append("")
    return texts


def _both(
    tokenizer: Any, messages: Sequence[Message]
) -> tuple[Tokenised | SetAside, Supervised | SetAside]:
    renderer = Renderer(tokenizer, "chat", POLICY, 100_000)
    (row,), (learning,) = renderer.render_batch([messages]), renderer.supervised([messages])
    return row, learning


def _learned(tokenizer: Any, messages: Sequence[Message]) -> str:
    _, row = _both(tokenizer, messages)
    assert isinstance(row, Supervised)
    return str(tokenizer.decode(row.ids[row.learned]))


def _text(tokenizer: Any, messages: Sequence[Message]) -> str:
    row, _ = _both(tokenizer, messages)
    assert isinstance(row, Tokenised)
    return str(tokenizer.decode(row.ids))


@pytest.fixture(scope="module")
def shared() -> Any:
    return byte_tokenizer(None, special=["<|open|>"], added=TOKENS[1:])


@pytest.mark.parametrize("path", _shipped(), ids=lambda path: path.stem)
def test_text_is_the_templates_own_or_the_row_is_set_aside(shared: Any, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    shared.chat_template = source
    assert template_faults(shared, "chat", tuned=True) == []
    renderer = Renderer(shared, "chat", POLICY, 100_000)
    conversations = [_messages(turns) for turns in SHAPES.values()]
    rendered = renderer.render_batch(conversations)
    supervised = renderer.supervised(conversations)
    for (shape, turns), row, learning in zip(SHAPES.items(), rendered, supervised, strict=True):
        own = _own_texts(shared, source, turns)
        said = [content.strip() for _, content, _ in turns]
        if isinstance(row, SetAside) or isinstance(learning, SetAside):
            assert row == learning
            assert shape not in ("one answer", "two answers", "white space", "control tokens")
            assert not shape.startswith("reasoning")
            # Nothing is set aside that the template renders with all that was said.
            for text in own:
                where = [text.find(content) for content in said]
                assert -1 in where or shape == "a tag in the answer", (shape, row, text)
            continue
        text = shared.decode(row.ids)
        assert text in [made for made in own if made], (shape, text)
        assert shared.decode(learning.ids).startswith(text)
        learned, counted = (
            shared.decode(made.ids[mask])
            for made, mask in ((learning, learning.learned), (row, row.counted))
        )
        for (role, _, _), content in zip(turns, said, strict=True):
            assert (content in learned) == (role == "assistant" or not content), (shape, learned)
            assert content in counted or content.replace('"', '\\"') in counted
        most = sum(len(message.content) for message in _messages(turns))
        assert len(counted) <= most + text.count("\\"), (shape, counted)


def test_trl_ships_the_templates_this_is_about() -> None:
    if not _shipped():
        pytest.skip("trl is not installed")
    assert len(_shipped()) >= 40


@pytest.mark.parametrize("block", ["<think>\n{}\n</think>\n\n", "<think>{}</think>", "{}</think>"])
def test_a_template_that_takes_thinking_apart_gets_one_block(block: str) -> None:
    tokenizer = byte_tokenizer(THINKING, special=["<|open|>"])
    turns = SHAPES["reasoning throughout"]
    messages = _messages(turns, block)
    made, learning = _both(tokenizer, messages)
    if not block.startswith("<think>"):
        assert isinstance(made, SetAside)
        assert isinstance(learning, SetAside)
        return
    assert _text(tokenizer, messages) == (
        "<|open|>user\nquestion one<|stop|>\n<|open|>assistant\nanswer one<|stop|>\n"
        "<|open|>user\nquestion two<|stop|>\n"
        "<|open|>assistant\n<think>\nwhy two\n</think>\n\nanswer two<|stop|>\n"
    )
    # The model writes the block itself: its prompt ends after the header.
    assert _learned(tokenizer, messages) == (
        "answer one<|stop|><think>\nwhy two\n</think>\n\nanswer two<|stop|>"
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_goes_into_the_field_that_the_template_reads(name: str) -> None:
    tokenizer = byte_tokenizer(FIELD.replace("FIELD", name), special=["<|open|>"])
    messages = _messages(SHAPES["reasoning last"])
    assert _text(tokenizer, messages).endswith(
        "<|open|>assistant\n[why]why two[so]answer two<|stop|>\n"
    )
    assert _learned(tokenizer, messages) == "answer one<|stop|>[why]why two[so]answer two<|stop|>"


def test_a_template_that_knows_no_reasoning_gets_the_content_as_it_is() -> None:
    tokenizer = byte_tokenizer(CHATML, special=["<|open|>"])
    messages = _messages(SHAPES["reasoning last"])
    assert messages[-1].content + "<|stop|>" in _learned(tokenizer, messages)


def test_what_a_prompt_in_use_ends_with_is_not_learned() -> None:
    opened = THINKING.replace("'<|open|>assistant\\n'", "'<|open|>assistant\\n<think>\\n'")
    tokenizer = byte_tokenizer(opened, special=["<|open|>"])
    messages = _messages(SHAPES["reasoning last"][2:])
    assert _learned(tokenizer, messages) == "why two\n</think>\n\nanswer two<|stop|>"


def test_an_answer_that_is_marked_as_not_to_learn_carries_no_loss() -> None:
    tokenizer = byte_tokenizer(CHATML, special=["<|open|>"])
    turns = [
        Message("user", "Where?"),
        Message("assistant", "Here.", learn=False),
        Message("user", "Why?"),
        Message("assistant", "So."),
    ]
    assert _learned(tokenizer, turns) == "So.<|stop|>"
    assert _learned(tokenizer, turns[:2]) == ""
    (plain,) = Renderer(tokenizer, "plain", POLICY, 99).supervised([turns])
    assert isinstance(plain, Supervised)
    assert tokenizer.decode(plain.ids[plain.learned]) == "So.<|stop|>"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([Message("system", "s"), Message("user", "q")], "refuses it: no system turn here"),
        ([Message("assistant", "a"), Message("user", "q")], "refuses it: turns must take turns"),
        ([Message("user", "q"), Message("user", "q")], "refuses it: turns must take turns"),
    ],
)
def test_what_a_template_refuses_is_set_aside_alone(turns: list[Message], reason: str) -> None:
    tokenizer = byte_tokenizer(ALTERNATING, special=["<|open|>"])
    renderer = Renderer(tokenizer, "chat", POLICY, 512)
    fine = _messages(SHAPES["one answer"])
    first, odd, last = renderer.render_batch([fine, turns, fine])
    assert isinstance(odd, SetAside)
    assert reason in odd.reason
    assert "\n" not in odd.reason
    assert isinstance(first, Tokenised)
    assert isinstance(last, Tokenised)
    assert first.ids.tolist() == last.ids.tolist() == renderer.render(fine).ids.tolist()
    assert renderer.supervised([turns]) == [odd]


@pytest.mark.parametrize(
    "broken",
    [
        "{{ messages[1].content // 0 }}",
        "{{ messages[9].content + 'x' }}",
        "{{ [1, 2] | sum(attribute='a') | abs }}",
        "{{ none | length }}",
    ],
)
def test_code_that_fails_on_some_rows_only_sets_those_aside(broken: str) -> None:
    source = "{% if messages | length > 2 %}" + broken + "{% endif %}" + CHATML
    tokenizer = byte_tokenizer(source, special=["<|open|>"])
    assert template_faults(tokenizer, "chat") == []
    renderer = Renderer(tokenizer, "chat", POLICY, 512)
    fine, long = renderer.render_batch(
        [_messages(SHAPES["one answer"]), _messages(SHAPES["two answers"])]
    )
    assert isinstance(fine, Tokenised)
    assert isinstance(long, SetAside)
    assert "\n" not in long.reason


@pytest.mark.parametrize("change", ["| upper", "| replace('o', '0')", "[:-1]", "| reverse"])
def test_a_content_that_is_rewritten_is_set_aside(change: str) -> None:
    tokenizer = byte_tokenizer(
        "{% for m in messages %}{{ '<|open|>' + m.role + '\n' }}{% if m.content | length > 20 %}"
        "{{ m.content " + change + " }}{% else %}{{ m.content }}{% endif %}{{ '<|stop|>' }}"
        "{% endfor %}",
        special=["<|open|>"],
    )
    row, learning = _both(tokenizer, [Message("user", "Which of the owls nests on the ground?")])
    assert isinstance(row, SetAside)
    assert isinstance(learning, SetAside)
    assert "rewrites" in row.reason


def test_a_template_for_parts_gets_parts() -> None:
    tokenizer = byte_tokenizer(PARTS, special=["<|open|>"])
    assert template_faults(tokenizer, "chat", tuned=True) == []
    messages = _messages(SHAPES["two answers"])
    assert _text(tokenizer, messages) == "".join(
        f"<|open|>{message.role}:{message.content}<|stop|>" for message in messages
    )
    assert _learned(tokenizer, messages) == "answer one<|stop|>answer two<|stop|>"


def test_a_turn_that_the_template_drops_is_set_aside() -> None:
    source = "{% for m in messages if m.role != 'tool' %}" + CHATML.partition("%}")[2]
    tokenizer = byte_tokenizer(source, special=["<|open|>"])
    row, _ = _both(tokenizer, _messages(SHAPES["a tool turn"]))
    assert row == SetAside("the chat template drops the text of turn 3, tool")


def test_an_answer_that_ends_with_nothing_is_taught_to_end() -> None:
    tokenizer = byte_tokenizer(NO_END, special=["<|ask|>", "<|reply|>"])
    messages = _messages(SHAPES["two answers"])
    row, learning = _both(tokenizer, messages)
    assert isinstance(row, Tokenised)
    assert isinstance(learning, Supervised)
    assert learning.ids.tolist() == [*row.ids.tolist(), tokenizer.eos_token_id]
    assert _learned(tokenizer, messages) == "answer oneanswer two<|stop|>"
    (cut,) = Renderer(tokenizer, "chat", POLICY, len(row.ids)).supervised([messages])
    assert isinstance(cut, Supervised)
    assert cut.length == len(cut.ids) + 1
    # A conversation that ends with a question has nothing to end.
    assert _learned(tokenizer, messages[:3]) == "answer one"


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (None, "no chat template: set template to plain, olmo or llama2"),
        ({"rag": CHATML, "tool": CHATML}, r"several chat templates \(rag, tool\) and none is"),
        ("{% for m in messages %}{{ m.content }", "is no Jinja"),
        ("{{ messages[0].content.nothing.more }}", "in a plain question and answer"),
        ("{{ 1 // 0 }}", "in a plain question and answer"),
        (
            "{% for m in messages %}{{ m.role }}{% endfor %}",
            "drops the text of turn 1, user, in a plain",
        ),
        ("{{ raise_exception('never\nmind') }}", "refuses it: never mind, in a plain question"),
    ],
)
def test_faults_of_a_whole_template_are_one_line(template: Any, line: str) -> None:
    import re

    (fault,) = template_faults(byte_tokenizer(template), "chat")
    assert re.search(line, fault)
    assert "\n" not in fault
    assert template_faults(byte_tokenizer(template), "plain", tuned=True) == []


def test_of_several_templates_the_default_one_is_read() -> None:
    several = {"default": CHATML, "tool_use": "{{ 1 // 0 }}"}
    tokenizer = byte_tokenizer(several, special=["<|open|>"])
    assert template_faults(tokenizer, "chat", tuned=True) == []
    assert _text(tokenizer, _messages(SHAPES["one answer"])).startswith("<|open|>user\nquestion")


def test_without_an_end_nothing_can_be_taught() -> None:
    tokenizer = byte_tokenizer(NO_END, special=["<|ask|>", "<|reply|>"], eos=None)
    assert template_faults(tokenizer, "chat") == []
    assert "never learn to stop" in template_faults(tokenizer, "chat", tuned=True)[0]
    assert "never learn to stop" in template_faults(tokenizer, "plain", tuned=True)[0]
