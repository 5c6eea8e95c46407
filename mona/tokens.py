"""Samples as tokens: the rendered conversation, and which of its tokens count.

Counted tokens are message content (DESIGN: conventions): not the template, its special
tokens, a system prompt the template adds by itself, or the first `skip_first` positions.
Text inside data that spells a special token is tokenised as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mona.errors import RequestError, WorkError
from mona.sample import Message, to_records
from mona.spec import Template, TokenPolicy

# Private-use characters: they stand for a message's content while the template is rendered.
_OPEN, _CLOSE = "\ue000", "\ue001"
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
class _Piece:
    """A stretch of the rendered text: template, or one message's content."""

    text: str
    is_content: bool


class Renderer:
    """Renders conversations with one tokenizer, template and token policy.

    Templates: "chat" is the model's own; "plain" is prompt, newline, response; "olmo" is
    prompt, space, response, end of text; "llama2" is `<s>[INST] prompt [/INST] response
    </s>` (arXiv 2503.15573, training formats). RequestError for "chat" without a template.
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
        self.tokenizer = tokenizer
        self.template = template
        self.policy = policy
        self.max_length = max_length
        special = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len)
        self._special = re.compile("|".join(re.escape(token) for token in reversed(special)) or "$^")

    def render(self, messages: Sequence[Message]) -> Tokenised:
        """One conversation."""
        return self.render_batch([messages])[0]

    def render_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Tokenised]:
        """Many conversations; each result is what `render` gives alone."""
        pieces = [self._pieces(messages) for messages in conversations]
        whole = [i for i, parts in enumerate(pieces) if not self._spells_special(parts)]
        done: dict[int, Tokenised] = {}
        if whole:
            encoded = self.tokenizer(
                ["".join(piece.text for piece in pieces[i]) for i in whole],
                add_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,
            )
            for place, i in enumerate(whole):
                offsets = np.asarray(encoded["offset_mapping"][place], np.int64).reshape(-1, 2)
                done[i] = self._tokenised(
                    encoded["input_ids"][place], _overlaps_content(offsets, pieces[i])
                )
        for i, parts in enumerate(pieces):
            if i not in done:
                done[i] = self._piecewise(parts)
        return [done[i] for i in range(len(pieces))]

    def _tokenised(self, ids: Sequence[int], is_content: np.ndarray) -> Tokenised:
        counted = is_content if self.policy.count == "content" else np.ones(len(ids), bool)
        counted = counted.copy()
        counted[: self.policy.skip_first] = False
        return Tokenised(
            np.asarray(ids[: self.max_length], np.int32), counted[: self.max_length], len(ids)
        )

    def _piecewise(self, parts: list[_Piece]) -> Tokenised:
        """Template pieces with their special tokens, contents as plain text."""
        ids: list[int] = []
        content: list[bool] = []
        for piece in parts:
            made = self.tokenizer(
                piece.text,
                add_special_tokens=False,
                split_special_tokens=piece.is_content,
                verbose=False,
            )["input_ids"]
            ids += made
            content += [piece.is_content] * len(made)
        return self._tokenised(ids, np.asarray(content, bool))

    def _spells_special(self, parts: list[_Piece]) -> bool:
        return any(piece.is_content and self._special.search(piece.text) for piece in parts)

    def _pieces(self, messages: Sequence[Message]) -> list[_Piece]:
        if self.template != "chat":
            return self._plain_pieces(messages)
        # Templates see placeholders, so that the template's text and the data never mix.
        hidden = [Message(m.role, f"{_OPEN}{i}{_CLOSE}") for i, m in enumerate(messages)]
        rendered = self._apply(hidden)
        pieces: list[_Piece] = []
        end = 0
        for match in _PLACEHOLDER.finditer(rendered):
            pieces.append(_Piece(rendered[end : match.start()], is_content=False))
            pieces.append(_Piece(messages[int(match.group(1))].content, is_content=True))
            end = match.end()
        pieces.append(_Piece(rendered[end:], is_content=False))
        pieces = [piece for piece in pieces if piece.text]
        actual = self._apply(messages)
        if "".join(piece.text for piece in pieces) == actual:
            return pieces
        return _trimmed(pieces, actual)

    def _apply(self, messages: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        try:
            rendered = self.tokenizer.apply_chat_template(to_records(messages), tokenize=False)
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
            pieces.append(_Piece(message.content, is_content=True))
            pieces.append(_Piece(after, is_content=False))
        return [piece for piece in pieces if piece.text]


def _trimmed(pieces: list[_Piece], actual: str) -> list[_Piece]:
    """Pieces of a template that trims contents; WorkError for one that rewrites them."""
    made: list[_Piece] = []
    end = 0
    for piece in pieces:
        if not piece.is_content:
            continue
        # The template's own text may be glued differently around trimmed contents, so the
        # content is looked for and everything between contents is template.
        text = piece.text if actual.find(piece.text, end) >= 0 else piece.text.strip()
        start = actual.find(text, end)
        if start < 0:
            raise WorkError(
                "the chat template rewrites message contents, so counted tokens cannot be told: "
                "use template plain, olmo or llama2"
            )
        made.append(_Piece(actual[end:start], is_content=False))
        made.append(_Piece(text, is_content=True))
        end = start + len(text)
    made.append(_Piece(actual[end:], is_content=False))
    return [piece for piece in made if piece.text]


def _overlaps_content(offsets: np.ndarray, pieces: list[_Piece]) -> np.ndarray:
    """Whether each token's character span overlaps a content piece. Shape [n]."""
    is_content = np.concatenate(
        [np.full(len(piece.text), piece.is_content, bool) for piece in pieces]
        or [np.zeros(0, bool)]
    )
    before = np.concatenate([[0], np.cumsum(is_content)])
    return before[offsets[:, 1]] > before[offsets[:, 0]]
