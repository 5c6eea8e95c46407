"""Samples as tokens: the rendered conversation, which of its tokens count, which carry loss.

Counted tokens are message content (DESIGN: conventions): not the template, its special
tokens, a system prompt the template adds by itself, or the first `skip_first` positions.
Learned tokens, in fine-tuning, are what a model writes in use: assistant turns with what ends
them. Text inside data that spells a control token is tokenised as plain text.

What a template makes of a conversation is `mona.templates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mona.control_tokens import ALIAS, ControlTokens
from mona.errors import RequestError, WorkError
from mona.sample import Message, fold_system
from mona.spec import SystemTurns, Template, TokenPolicy
from mona.templates import ChatTemplate, Piece, Rendered, SetAside, plain_pieces

__all__ = [
    "RENDERING_VERSION",
    "Renderer",
    "SetAside",
    "Supervised",
    "Tokenised",
    "template_faults",
]

# Part of the encoder's fingerprint and of a fine-tuning's name. Raise it whenever some
# conversation gets other ids, counted or learned tokens than before, or is newly set aside.
RENDERING_VERSION = 2


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


def template_faults(tokenizer: Any, template: Template, *, tuned: bool = False) -> list[str]:
    """What makes a template useless with a tokenizer, whatever the conversation; a line each.

    No chat template, several without a default, one that is no Jinja, fails on a plain question
    and answer or drops their contents; with `tuned`, also that nothing would teach a tuned
    model to stop. Reads nothing but the tokenizer.
    """
    try:
        renderer = Renderer(tokenizer, template, TokenPolicy(), 2)
    except RequestError as error:
        return [str(error)]
    if tuned and not renderer.teaches_to_stop:
        return [
            f"template {template} ends answers with nothing and the tokenizer has no "
            "end-of-sequence token: a tuned model would never learn to stop"
        ]
    return []


class Renderer:
    """Renders conversations with one tokenizer, template, token policy and way with system turns.

    Templates: "chat" is the model's own; "plain" is prompt, newline, response; "olmo" is
    prompt, space, response, end of text; "llama2" is `<s>[INST] prompt [/INST] response
    </s>` (arXiv 2503.15573, training formats). The last three begin with what the tokenizer's
    own post-processor puts first. RequestError for a template with one of `template_faults`.

    The text is the template's own, to the letter, or the conversation is set aside. system:
    "fold" puts system turns into the user turn that follows (`mona.sample.fold_system`).
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        policy: TokenPolicy,
        max_length: int,
        system: SystemTurns = "keep",
    ) -> None:
        if not tokenizer.is_fast:
            raise RequestError("the model's tokenizer is not a fast one: offsets are needed")
        self.tokenizer = tokenizer
        self.template = template
        self.policy = policy
        self.max_length = max_length
        self.system = system
        own = tokenizer.chat_template if template == "chat" else ""
        self._controls = ControlTokens(tokenizer, str(own or ""))
        self._chat = ChatTemplate(tokenizer, self._controls.pattern) if template == "chat" else None
        # A chat template writes the token that begins a sequence itself.
        self._first = [] if template == "chat" else _first_ids(tokenizer)

    @property
    def teaches_to_stop(self) -> bool:
        """Whether something after an answer is learned: the template's end of a turn, or the
        end-of-sequence token put there."""
        made = self._pieces([Message("user", "?"), Message("assistant", "!")])
        return not isinstance(made, SetAside) and (made.closed or bool(self.tokenizer.eos_token))

    def render(self, messages: Sequence[Message]) -> Tokenised:
        """One conversation. WorkError with the reason where it would be set aside."""
        (made,) = self.render_batch([messages])
        if isinstance(made, SetAside):
            raise WorkError(made.reason)
        return made

    def render_batch(
        self, conversations: Sequence[Sequence[Message]]
    ) -> list[Tokenised | SetAside]:
        """Many conversations; each result is what `render` gives alone, or why it is set aside."""
        made: list[Tokenised | SetAside] = []
        rendered = [self._pieces(messages) for messages in conversations]
        for encoded in self._encode(rendered):
            if isinstance(encoded, SetAside):
                made.append(encoded)
                continue
            ids, counted, _ = encoded
            if self.policy.count == "all":
                counted = np.ones(len(ids), bool)
            counted[: self.policy.skip_first] = False
            cut = np.asarray(ids[: self.max_length], np.int32)
            made.append(Tokenised(cut, counted[: self.max_length], len(ids)))
        return made

    def supervised(self, conversations: Sequence[Sequence[Message]]) -> list[Supervised | SetAside]:
        """The same tokens as `render_batch`, with those that carry loss.

        Learned are the assistant turns as a model writes them in use: from where its prompt ends
        to the token that ends the turn. Where the template ends the last answer with nothing,
        the end-of-sequence token is put after it. The first token, which nothing predicts,
        is never learned. The token policy has no say here.
        """
        made: list[Supervised | SetAside] = []
        rendered = [self._ended(self._pieces(messages)) for messages in conversations]
        for encoded in self._encode(rendered):
            if isinstance(encoded, SetAside):
                made.append(encoded)
                continue
            ids, _, learned = encoded
            learned[:1] = False
            cut = np.asarray(ids[: self.max_length], np.int32)
            made.append(Supervised(cut, learned[: self.max_length], len(ids)))
        return made

    def _pieces(self, messages: Sequence[Message]) -> Rendered | SetAside:
        if self.system == "fold":
            messages = fold_system(messages)
        if self._chat is not None:
            return self._chat.pieces(messages)
        begin, end = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        return plain_pieces(messages, self.template, begin, end)

    def _ended(self, made: Rendered | SetAside) -> Rendered | SetAside:
        if isinstance(made, SetAside) or made.closed or not self.tokenizer.eos_token:
            return made
        return Rendered([*made.pieces, Piece(self.tokenizer.eos_token, learned=True)], True)

    def _encode(
        self, rendered: Sequence[Rendered | SetAside]
    ) -> list[tuple[list[int], np.ndarray, np.ndarray] | SetAside]:
        """Token ids [n], uncut, whether each is of a content [n], and whether it is learned [n]."""
        done: dict[int, tuple[list[int], np.ndarray, np.ndarray] | SetAside] = {}
        whole: list[tuple[int, list[Piece]]] = []
        for i, made in enumerate(rendered):
            if isinstance(made, SetAside):
                done[i] = made
            elif not self._controls.spelled_in(made.pieces):
                whole.append((i, made.pieces))
            elif any(piece.is_content and ALIAS in piece.text for piece in made.pieces):
                done[i] = SetAside(f"it spells a control token and holds U+{ord(ALIAS):X}")
            else:
                done[i] = self._marked(*self._controls.encode(made.pieces))
        if whole:
            encoded = self.tokenizer(
                ["".join(piece.text for piece in pieces) for _, pieces in whole],
                add_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,
            )
            for (i, pieces), ids, spans in zip(
                whole, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                done[i] = self._marked(ids, spans, pieces)
        return [done[i] for i in range(len(rendered))]

    def _marked(
        self, ids: Sequence[int], spans: Sequence[tuple[int, int]], pieces: list[Piece]
    ) -> tuple[list[int], np.ndarray, np.ndarray]:
        text = "".join(piece.text for piece in pieces)
        is_control = np.isin(np.asarray(ids, np.int64), self._controls.ids)
        content, learned = (
            _overlaps(spans, text, is_control, pieces, [flag(piece) for piece in pieces])
            for flag in (lambda piece: piece.is_content, lambda piece: piece.learned)
        )
        first = [] if list(ids[: len(self._first)]) == self._first else self._first
        none = np.zeros(len(first), bool)
        return (
            [*first, *ids],
            np.concatenate([none, content]),
            np.concatenate([none, learned]),
        )


def _first_ids(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer's own post-processor puts before a text."""
    made = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    mask = [*made["special_tokens_mask"], 0]
    return list(made["input_ids"][: mask.index(0)])


def _overlaps(
    spans: Sequence[tuple[int, int]],
    text: str,
    is_control: np.ndarray,
    pieces: list[Piece],
    flags: Sequence[bool],
) -> np.ndarray:
    """Whether each token's span overlaps a piece with a flag. Shape [n].

    spans: [n] pairs into `text`, the pieces joined. A control token is the template's: it is
    flagged with the piece that it begins in, though it may have eaten white space around it.
    """
    lengths = [len(piece.text) for piece in pieces]
    flagged = np.repeat(np.asarray(flags, bool), np.asarray(lengths, np.int64))
    places = np.asarray(spans, np.int64).reshape(-1, 2)
    before = np.concatenate([[0], np.cumsum(flagged)])
    start, end = places[:, 0].copy(), places[:, 1].copy()
    # Tokenizers that trim offsets give white space an empty span at its end: it began where
    # the token before it ended.
    previous_end = np.concatenate([[0], end])[:-1]
    start = np.where(start == end, np.minimum(start, previous_end), start)
    for i in np.flatnonzero(is_control & (end > start)):
        spelled = text[start[i] : end[i]]
        start[i] += len(spelled) - len(spelled.lstrip())
        end[i] = min(end[i], start[i] + 1)
    return before[end] > before[start]
