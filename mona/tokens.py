"""Samples as tokens: the rendered conversation, which of its tokens count, which carry loss.

Counted tokens are message content (DESIGN: conventions): not the template, its special
tokens, a system prompt the template adds by itself, or the first `skip_first` positions.
Learned tokens, in fine-tuning, are assistant turns with what ends them. Text inside data that
spells a special token is tokenised as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mona.errors import RequestError, WorkError
from mona.sample import Message, to_records
from mona.spec import Template, TokenPolicy

# Private-use characters: they stand for a message's content while the template is rendered.
_OPEN, _CLOSE = "\ue000", "\ue001"
# Templates that ask for today's date are told the default of Llama 3.1's: a sample's tokens
# must not depend on the day. A macro, because transformers hands no functions to templates.
_FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
_PLACEHOLDER = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A rendered sample.

    ids: int32 [n], cut to the renderer's max_length; counted: bool [n]; length: tokens
    before the cut.
    """

    ids: np.ndarray
    counted: np.ndarray
    length: int


@dataclass(frozen=True, slots=True)
class Supervised:
    """A rendered sample to train on.

    ids: int32 [n], cut to the renderer's max_length; learned: bool [n], the tokens the model
    is to predict; length: tokens before the cut.
    """

    ids: np.ndarray
    learned: np.ndarray
    length: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of the rendered text: template, or one message's content.

    learned: how many of its first characters carry loss.
    """

    text: str
    is_content: bool
    learned: int = 0


class Renderer:
    """Renders conversations with one tokenizer, template and token policy.

    Templates: "chat" is the model's own; "plain" is prompt, newline, response; "olmo" is
    prompt, space, response, end of text; "llama2" is `<s>[INST] prompt [/INST] response
    </s>` (arXiv 2503.15573, training formats). RequestError for "chat" without a template.

    A chat template that trims contents is honoured; one that rewrites a content otherwise
    gets that conversation's contents verbatim between its own text. A conversation whose data
    spells a special token is tokenised piece by piece, so there no token spans a seam.
    """

    def __init__(
        self, tokenizer: Any, template: Template, policy: TokenPolicy, max_length: int
    ) -> None:
        if template == "chat" and not tokenizer.chat_template:
            raise RequestError(
                "the model has no chat template: set template to plain, olmo or llama2"
            )
        if not tokenizer.is_fast:
            raise RequestError("the model's tokenizer is not a fast one: offsets are needed")
        self._chat_template = tokenizer.get_chat_template() if template == "chat" else ""
        if "strftime_now" in self._chat_template:
            self._chat_template = _FIXED_DATE + self._chat_template
        self._skeletons: dict[tuple[str, ...], list[str]] = {}
        self.tokenizer = tokenizer
        self.template = template
        self.policy = policy
        self.max_length = max_length
        special = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len)
        self._special = re.compile(
            "|".join(re.escape(token) for token in reversed(special)) or "$^"
        )

    def render(self, messages: Sequence[Message]) -> Tokenised:
        """One conversation."""
        return self.render_batch([messages])[0]

    def render_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Tokenised]:
        """Many conversations; each result is what `render` gives alone."""
        return [
            self._tokenised(ids, counted)
            for ids, counted in self._encode(conversations, _content_length)
        ]

    def supervised(self, conversations: Sequence[Sequence[Message]]) -> list[Supervised]:
        """The same tokens as `render_batch`, with those that carry loss.

        Learned are the assistant turns' contents and the template's text after each, up to and
        including its end-of-turn token (so that the model learns to stop); never the first
        token, which nothing predicts. The token policy has no say here.
        """
        made = []
        for ids, learned in self._encode(conversations, lambda piece: piece.learned):
            learned[:1] = False
            cut = np.asarray(ids[: self.max_length], np.int32)
            made.append(Supervised(cut, learned[: self.max_length], len(ids)))
        return made

    def _tokenised(self, ids: Sequence[int], is_content: np.ndarray) -> Tokenised:
        counted = is_content.copy() if self.policy.count == "content" else np.ones(len(ids), bool)
        counted[: self.policy.skip_first] = False
        return Tokenised(
            np.asarray(ids[: self.max_length], np.int32), counted[: self.max_length], len(ids)
        )

    def _encode(
        self, conversations: Sequence[Sequence[Message]], marked: Callable[[_Piece], int]
    ) -> list[tuple[Sequence[int], np.ndarray]]:
        """Token ids [n], uncut, and whether each overlaps the first `marked` characters of a
        piece, bool [n]."""
        pieces = [self._pieces(messages) for messages in conversations]
        whole = [i for i, parts in enumerate(pieces) if not self._spells_special(parts)]
        done: dict[int, tuple[Sequence[int], np.ndarray]] = {}
        if whole:
            encoded = self.tokenizer(
                ["".join(piece.text for piece in pieces[i]) for i in whole],
                add_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,
            )
            for place, i in enumerate(whole):
                done[i] = (
                    encoded["input_ids"][place],
                    _overlaps(encoded["offset_mapping"][place], pieces[i], marked),
                )
        for i, parts in enumerate(pieces):
            if i not in done:
                done[i] = self._piecewise(parts, marked)
        return [done[i] for i in range(len(pieces))]

    def _piecewise(
        self, parts: list[_Piece], marked: Callable[[_Piece], int]
    ) -> tuple[list[int], np.ndarray]:
        """As `_encode`: template pieces with their special tokens, contents as plain text."""
        ids: list[int] = []
        marks: list[np.ndarray] = []
        for piece in parts:
            made = self.tokenizer(
                piece.text,
                add_special_tokens=False,
                return_offsets_mapping=True,
                split_special_tokens=piece.is_content,
                verbose=False,
            )
            ids += made["input_ids"]
            if marked(piece) == len(piece.text):
                # Offsets are not asked: a token a tokenizer puts before the text spans nothing.
                marks.append(np.ones(len(made["input_ids"]), bool))
            else:
                marks.append(_overlaps(made["offset_mapping"], [piece], marked))
        return ids, np.concatenate([*marks, np.zeros(0, bool)])

    def _spells_special(self, parts: list[_Piece]) -> bool:
        return any(piece.is_content and self._special.search(piece.text) for piece in parts)

    def _pieces(self, messages: Sequence[Message]) -> list[_Piece]:
        if self.template != "chat":
            return self._plain_pieces(messages)
        # Template text and message numbers alternate, template text first and last.
        roles = tuple(message.role for message in messages)
        skeleton = self._skeleton(roles)
        pieces = [_Piece(skeleton[0], is_content=False)]
        for number, after in zip(skeleton[1::2], skeleton[2::2], strict=True):
            message = messages[int(number)]
            answer = message.role == "assistant" and message.learn
            pieces.append(_content(message))
            closing = self._closing(after, roles[: int(number) + 1]) if answer else 0
            pieces.append(_Piece(after, is_content=False, learned=closing))
        pieces = [piece for piece in pieces if piece.text]
        actual = self._apply(messages)
        # Where the template rewrites a content (a tool's answer as JSON, say), the content is
        # put in as it is: which tokens are content would not be known otherwise.
        return _as_rendered(pieces, actual) or pieces

    def _skeleton(self, roles: tuple[str, ...]) -> list[str]:
        """The chat template's text for these roles, split at the contents' places."""
        if roles not in self._skeletons:
            # The template sees placeholders, so that its own text and the data never mix.
            hidden = [Message(role, f"{_OPEN}{i}{_CLOSE}") for i, role in enumerate(roles)]
            self._skeletons[roles] = _PLACEHOLDER.split(self._apply(hidden))
        return self._skeletons[roles]

    def _closing(self, after: str, roles: tuple[str, ...]) -> int:
        """How many characters of the template's text after an assistant turn end that turn.

        A template may end turns with nothing: then the first special token is the next turn's,
        so a conversation that stops here (`roles`) is asked whether there is one.
        """
        end = self._special.search(after)
        return end.end() if end and self._special.search(self._skeleton(roles)[-1]) else 0

    def _apply(self, messages: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        try:
            rendered = self.tokenizer.apply_chat_template(
                to_records(messages), tokenize=False, chat_template=self._chat_template
            )
        except TemplateError as error:
            raise WorkError(f"the chat template refuses a conversation: {error}") from error
        return str(rendered)

    def _plain_pieces(self, messages: Sequence[Message]) -> list[_Piece]:
        begin = self.tokenizer.bos_token or ""
        end = self.tokenizer.eos_token or ""
        pieces: list[_Piece] = []
        for message in messages:
            answer = message.role == "assistant"
            before, after = {
                "plain": ("", end if answer else "\n"),
                "olmo": ("", end if answer else " "),
                "llama2": (" ", f" {end}") if answer else (f"{begin}[INST] ", " [/INST]"),
            }[self.template]
            pieces.append(_Piece(before, is_content=False))
            pieces.append(_content(message))
            closing = len(after) if answer and message.learn else 0
            pieces.append(_Piece(after, is_content=False, learned=closing))
        return [piece for piece in pieces if piece.text]


def _content(message: Message) -> _Piece:
    learned = len(message.content) if message.role == "assistant" and message.learn else 0
    return _Piece(message.content, is_content=True, learned=learned)


def _content_length(piece: _Piece) -> int:
    return len(piece.text) if piece.is_content else 0


def _as_rendered(pieces: list[_Piece], actual: str) -> list[_Piece] | None:
    """The pieces with each content trimmed as it is in `actual`; None if they don't make it.

    Template pieces are the anchors: a content is never searched for, because a header may
    spell it too.
    """
    made: list[_Piece] = []
    end = 0
    for piece, following in zip(pieces, [*pieces[1:], _Piece("", is_content=False)], strict=True):
        text = piece.text
        forms = [text, text.rstrip(), text.lstrip(), text.strip()] if piece.is_content else [text]
        anchor = "" if following.is_content else following.text
        fitting = [form for form in forms if actual.startswith(form + anchor, end)]
        if not fitting:
            return None
        made.append(replace(piece, text=fitting[0], learned=min(piece.learned, len(fitting[0]))))
        end += len(fitting[0])
    return [piece for piece in made if piece.text] if end == len(actual) else None


def _overlaps(
    offsets: Sequence[tuple[int, int]], pieces: list[_Piece], marked: Callable[[_Piece], int]
) -> np.ndarray:
    """Whether each token's character span overlaps the first `marked` characters of a piece.

    offsets: [n] pairs into the pieces' joined text. Shape [n].
    """
    spans = np.asarray(offsets, np.int64).reshape(-1, 2)
    is_marked = np.concatenate(
        [np.arange(len(piece.text)) < marked(piece) for piece in pieces] or [np.zeros(0, bool)]
    )
    before = np.concatenate([[0], np.cumsum(is_marked)])
    start, end = spans[:, 0], spans[:, 1]
    # Tokenizers that trim offsets give white space an empty span at its end: it began where
    # the token before it ended.
    previous_end = np.concatenate([[0], end])[:-1]
    start = np.where(start == end, np.minimum(start, previous_end), start)
    return before[end] > before[start]
