"""Conversations as text: what a template writes itself, and the data between.

Belongs here: a model's chat template and the paper's plain formats, how a conversation is given
to them, and which stretch of the text is content, which carries loss. Tokens are
`mona.tokens`; how a vocabulary's control tokens are kept out of data is `mona.control_tokens`.

The text is always the template's own. A conversation for which that cannot be had (the template
refuses it, drops a turn, or rewrites one so that content and template can't be told apart) is
set aside with the reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from mona.errors import RequestError, sentence
from mona.sample import Message, split_reasoning
from mona.spec import Template

# Private-use characters: they stand for a message's content while the template is rendered.
_OPEN, _CLOSE = "\ue000", "\ue001"
_PLACEHOLDER = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
# Templates that ask for today's date are told the default of Llama 3.1's: a sample's tokens
# must not depend on the day. A macro, because transformers hands no functions to templates.
_FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
# What templates call the reasoning of an answer.
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_KEPT_SHAPES = 2_000
_PART_AS_CODE = "'type': 'text'"  # a list of parts that a template wrote as Python shows it

_Where = Literal["inside", "field"]  # where an answer's reasoning is given


@dataclass(frozen=True, slots=True)
class SetAside:
    """A conversation that the template can't render truly, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the rendered text: the template's, or a message's content; learned: it
    carries loss in fine-tuning."""

    text: str
    is_content: bool = False
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation's text. closed: no answer at its end, or the template ends it with a
    control token; otherwise nothing in the text tells a model to stop."""

    pieces: list[Piece]
    closed: bool


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message as it is given to the template; or, with placeholders, the shape of one.

    learned: an answer that carries loss; reasoning: what a `<think>` block before the content
    holds, None where there is none; around: what opens and closes the block.
    """

    role: str
    content: str
    learned: bool
    reasoning: str | None = None
    around: tuple[str, str] = ("<think>\n", "\n</think>\n\n")


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the template makes of a shape: its own pieces, and numbers of contents.

    Turn i has content 2i and reasoning 2i + 1.
    """

    slots: list[Piece | int]
    closed: bool


def _place(number: int) -> str:
    return f"{_OPEN}{number}{_CLOSE}"


_PROBE = (_Turn("user", _place(0), False), _Turn("assistant", _place(2), True))
_THINKING_PROBE = (_PROBE[0], replace(_PROBE[1], reasoning=_place(3)))
_LONG_PROBE = (*_PROBE, _Turn("user", _place(4), False), _Turn("assistant", _place(6), True))


class ChatTemplate:
    """A tokenizer's own chat template.

    controls: matches the tokenizer's control tokens. RequestError, in one line, where the
    template can't render a plain question and answer: see `mona.tokens.template_faults`.

    An answer that begins with a `<think>` block is given as the template wants it: reasoning in
    the field that it reads, or within the content. Contents are given as a list of one text
    part where the template drops plain text, as those of vision models may.
    """

    def __init__(self, tokenizer: Any, controls: re.Pattern[str]) -> None:
        self._tokenizer = tokenizer
        self._controls = controls
        self._source = _source(tokenizer)
        # What a shape gives is asked again for every conversation of that shape.
        self._render = lru_cache(_KEPT_SHAPES)(self._apply)
        self._layout = lru_cache(_KEPT_SHAPES)(self._made_layout)
        self._parts = False
        found = self._skeleton(_PROBE, "inside")
        if isinstance(found, SetAside):
            self._render.cache_clear()
            self._parts = True
            if isinstance(self._skeleton(_PROBE, "inside"), SetAside):
                raise RequestError(f"{found.reason}, in a plain question and answer")
        self._knows_blocks = self._finds_blocks()
        self._field = self._reasoning_field()

    def pieces(self, messages: Sequence[Message]) -> Rendered | SetAside:
        """The template's own text for these messages."""
        refused: SetAside | None = None
        for turns, where in self._ways(messages):
            for literal in (False, True):
                if literal and all(turn.content.strip() for turn in turns):
                    continue
                made = self._fitted(turns, where, literal)
                if not isinstance(made, SetAside):
                    return made
                refused = refused or made
        assert refused is not None
        return refused

    def _ways(self, messages: Sequence[Message]) -> Iterator[tuple[tuple[_Turn, ...], _Where]]:
        """How the conversation may be given, best first."""
        split = tuple(_split(message) for message in messages)
        if all(turn.reasoning is None for turn in split):
            yield split, "inside"
            return
        if self._knows_blocks:
            yield split, "inside"
        if self._field is not None:
            yield split, "field"
        elif not self._knows_blocks:
            yield tuple(_whole(message) for message in messages), "inside"

    def _fitted(
        self, turns: tuple[_Turn, ...], where: _Where, literal: bool
    ) -> Rendered | SetAside:
        """literal: blank contents are given as they are, not sought in the text: a template may
        leave a blank turn out."""
        layout = self._layout(_shape(turns, literal), where)
        if isinstance(layout, SetAside):
            return layout
        actual = self._apply(turns, where)
        if isinstance(actual, SetAside):
            return actual
        pieces = [
            slot if isinstance(slot, Piece) else _content(turns[slot // 2], slot % 2 == 1)
            for slot in layout.slots
        ]
        fitted = _as_rendered(pieces, actual)
        if fitted is None:
            return SetAside("the chat template rewrites a content: it can't be told from the text")
        return Rendered(fitted, layout.closed)

    def _made_layout(self, shape: tuple[_Turn, ...], where: _Where) -> _Layout | SetAside:
        skeleton = self._skeleton(shape, where)
        if isinstance(skeleton, SetAside):
            return skeleton
        slots: list[Piece | int] = [Piece(skeleton[0])]
        closed = not shape or not shape[-1].learned
        numbers = [int(number) for number in skeleton[1::2]]
        for place, (number, after) in enumerate(zip(numbers, skeleton[2::2], strict=True)):
            turn = number // 2
            if not shape[turn].learned:
                slots += [number, Piece(after)]
                continue
            if place == 0 or numbers[place - 1] != number + 1:
                slots[-1:] = self._opening(slots[-1], shape[:turn], where)
            slots.append(number)
            if numbers[place + 1 : place + 2] == [number - 1]:
                # Between an answer's reasoning and its content.
                slots.append(Piece(after, learned=True))
                continue
            end, ends = self._closing(after, shape[: turn + 1], where)
            slots += [Piece(after[:end], learned=True), Piece(after[end:])]
            closed = closed or (turn == len(shape) - 1 and ends)
        return _Layout([slot for slot in slots if not isinstance(slot, Piece) or slot.text], closed)

    def _opening(
        self, before: Piece | int, asked: tuple[_Turn, ...], where: _Where
    ) -> list[Piece | int]:
        """The template's text before an answer, cut where the prompt ends that a model is given
        in use: what follows (`<think>`, a channel) it has to write itself."""
        if not isinstance(before, Piece) or before.learned or not asked:
            return [before]
        alone, prompt = (self._render(asked, where, flag) for flag in (False, True))
        if isinstance(alone, SetAside) or isinstance(prompt, SetAside):
            return [before]
        header = prompt[len(alone) :] if prompt.startswith(alone) else ""
        at = before.text.rfind(header) + len(header) if header in before.text else 0
        if not header or not at:
            return [before]
        return [Piece(before.text[:at]), Piece(before.text[at:], learned=True)]

    def _closing(self, after: str, shape: tuple[_Turn, ...], where: _Where) -> tuple[int, bool]:
        """How many characters of the template's text after an answer end that turn, and whether
        they end with a control token.

        A template may end turns with nothing: then the first control token is the next turn's,
        so a conversation that stops here (`shape`) is asked what it ends with.
        """
        text = self._render(shape, where)
        tail = "" if isinstance(text, SetAside) else text.rpartition(_CLOSE)[2]
        control = self._controls.search(tail)
        if control is not None:
            return (control.end() if after.startswith(tail[: control.end()]) else 0), True
        # A tail of words ends the turn as well, if not as surely as a token.
        ends = after == tail or (bool(tail.strip()) and after.startswith(tail))
        return (len(tail) if ends else 0), False

    def _skeleton(self, shape: tuple[_Turn, ...], where: _Where) -> list[str] | SetAside:
        """The template's text for a shape, split at its placeholders: template text and numbers
        alternate, template text first and last."""
        text = self._render(shape, where)
        if isinstance(text, SetAside):
            return text
        parts = _PLACEHOLDER.split(text)
        own = "".join(parts[::2])
        if _OPEN in own or _CLOSE in own or (self._parts and _PART_AS_CODE in own):
            return SetAside("the chat template rewrites contents")
        times = Counter(map(int, parts[1::2]))
        for i, turn in enumerate(shape):
            if (turn.content.strip() and times[2 * i] != 1) or times[2 * i + 1] > 1:
                done = "drops" if times[2 * i] == 0 else "repeats"
                return SetAside(f"the chat template {done} the text of turn {i + 1}, {turn.role}")
        return parts

    def _apply(
        self, turns: tuple[_Turn, ...], where: _Where, generation: bool = False
    ) -> str | SetAside:
        from jinja2 import TemplateError, TemplateSyntaxError

        records: list[dict[str, Any]] = []
        for turn in turns:
            content = turn.content
            if where == "inside" and turn.reasoning is not None:
                content = turn.around[0] + turn.reasoning + turn.around[1] + content
            parts = [{"type": "text", "text": content}] if self._parts else content
            records.append({"role": turn.role, "content": parts})
            if where == "field" and turn.reasoning is not None:
                assert self._field is not None
                records[-1][self._field] = turn.reasoning
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    records,
                    tokenize=False,
                    chat_template=self._source,
                    add_generation_prompt=generation,
                )
            )
        except TemplateSyntaxError as error:
            raise RequestError(f"the chat template is no Jinja: {sentence(error)}") from error
        except (
            # What a template may raise on purpose, or as the program that it is.
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            return SetAside(f"the chat template refuses it: {sentence(error)}")

    def _finds_blocks(self) -> bool:
        """Whether the template looks for a `<think>` block within an answer's content."""
        # Some templates do so in earlier answers only.
        thinking = (*_THINKING_PROBE, *_LONG_PROBE[2:-1], replace(_LONG_PROBE[-1], reasoning="."))
        plain, thought = (self._render(shape, "inside") for shape in (_LONG_PROBE, thinking))
        if isinstance(plain, SetAside) or isinstance(thought, SetAside):
            return False
        for answer in (turn for turn in thinking if turn.reasoning is not None):
            block = answer.around[0] + str(answer.reasoning) + answer.around[1]
            plain = plain.replace(answer.content, block + answer.content)
        return thought != plain

    def _reasoning_field(self) -> str | None:
        """The field in which the template takes an answer's reasoning; None where in none."""
        for name in _REASONING_FIELDS:
            self._field = name
            text = self._apply(_THINKING_PROBE, "field")
            if not isinstance(text, SetAside) and str(_THINKING_PROBE[1].reasoning) in text:
                return name
        return None


def plain_pieces(messages: Sequence[Message], template: Template, begin: str, end: str) -> Rendered:
    """The paper's formats ("plain", "olmo", "llama2") with the texts of the tokens that begin a
    sequence and end an answer."""
    pieces: list[Piece] = []
    for message in messages:
        answer = message.role == "assistant"
        before, after = {
            "plain": ("", end if answer else "\n"),
            "olmo": ("", end if answer else " "),
            "llama2": (" ", f" {end}") if answer else (f"{begin}[INST] ", " [/INST]"),
        }[template]
        learned = answer and message.learn
        content = Piece(message.content, is_content=True, learned=learned)
        pieces += [Piece(before), content, Piece(after, learned=learned)]
    closed = bool(end) or not messages or messages[-1].role != "assistant"
    return Rendered([piece for piece in pieces if piece.text], closed)


def _source(tokenizer: Any) -> str:
    given = tokenizer.chat_template
    if not given:
        raise RequestError("the model has no chat template: set template to plain, olmo or llama2")
    if isinstance(given, dict):
        if "default" not in given:
            raise RequestError(
                f"the model has several chat templates ({', '.join(sorted(given))}) and none is "
                "called default: set template to plain, olmo or llama2"
            )
        given = given["default"]
    source = str(given)
    return _FIXED_DATE + source if "strftime_now" in source else source


def _whole(message: Message) -> _Turn:
    return _Turn(message.role, message.content, message.role == "assistant" and message.learn)


def _split(message: Message) -> _Turn:
    found = split_reasoning(message.content) if message.role == "assistant" else None
    if found is None:
        return _whole(message)
    opening, reasoning, closing, rest = found
    return replace(_whole(message), content=rest, reasoning=reasoning, around=(opening, closing))


def _shape(turns: tuple[_Turn, ...], literal: bool) -> tuple[_Turn, ...]:
    """The turns with placeholders for what they say, so that data and template never mix."""
    return tuple(
        _Turn(
            turn.role,
            turn.content if literal and not turn.content.strip() else _place(2 * i),
            turn.learned,
            _place(2 * i + 1) if turn.reasoning else turn.reasoning,
            turn.around,
        )
        for i, turn in enumerate(turns)
    )


def _content(turn: _Turn, is_reasoning: bool) -> Piece:
    text = (turn.reasoning or "") if is_reasoning else turn.content
    return Piece(text, is_content=True, learned=turn.learned)


def _as_rendered(pieces: list[Piece], actual: str) -> list[Piece] | None:
    """The pieces with each content as it is in `actual`, trimmed or quoted; None if they don't
    make it.

    Template pieces are the anchors: a content is never searched for, because a header may
    spell it too.
    """
    made: list[Piece] = []
    end = 0
    for place, piece in enumerate(pieces):
        anchor = ""
        for following in pieces[place + 1 :]:
            if following.is_content:
                break
            anchor += following.text
        fitting = next(
            (form for form in _forms(piece) if actual.startswith(form + anchor, end)), None
        )
        if fitting is None:
            return None
        made.append(replace(piece, text=fitting))
        end += len(fitting)
    return [piece for piece in made if piece.text] if end == len(actual) else None


def _forms(piece: Piece) -> Iterator[str]:
    """How a template may write a piece: as it is, trimmed, and a question within JSON."""
    text = piece.text
    yield text
    if not piece.is_content:
        return
    core = text.strip()
    lead, trail = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    if core and lead + trail:
        for kept in dict.fromkeys((lead, lead.lstrip("\n"), lead.lstrip(" "), "")):
            for left in dict.fromkeys((trail, trail.rstrip("\n"), trail.rstrip(" "), "")):
                yield kept + core + left
    elif not core:
        yield ""
    if not piece.learned:  # an answer is to be learned as it is
        yield json.dumps(text, ensure_ascii=False)[1:-1]
