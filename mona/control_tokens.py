"""Control tokens: those of a vocabulary that steer a model, and how data never spells one.

Belongs here: which added tokens those are, and a tokenizer that takes them from a template's
text but not from the data between.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mona.templates import Piece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Noncharacter-like private use: the twin's names of control tokens are written with it.
ALIAS = "\U0010fffd"


class ControlTokens:
    """The control tokens of a fast tokenizer, under a chat template's source.

    Those marked special, those beyond the tokenizer's own vocabulary, those the template writes
    and those spelled `<|...`. What else a vocabulary has added (runs of white space, Gemma's HTML
    tags) is text, and is tokenised as in use.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer = tokenizer
        own = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
        special = tokenizer.all_special_tokens
        steers = dict(zip(special, tokenizer.convert_tokens_to_ids(special), strict=True))
        for number, added in tokenizer.added_tokens_decoder.items():
            text = added.content
            if added.special or (
                text.strip(" \t\r\n\u2581")
                and (
                    text not in own
                    or text.startswith("<|")
                    or (text in source and not text.isalnum())
                )
            ):
                steers[text] = number
        self.ids = np.array(sorted(steers.values()), np.int64)
        self._names = sorted(steers, key=lambda text: (-len(text), text))
        self.pattern = re.compile("|".join(map(re.escape, self._names)) or "$^")
        self._aliases = {text: f"{ALIAS}{i}{ALIAS}" for i, text in enumerate(self._names)}
        self._twin: tuple[Tokenizer, dict[int, int]] | None = None

    def spelled_in(self, pieces: list[Piece]) -> bool:
        """Whether data makes a control token, alone or together with what stands beside it."""
        whole = "".join(piece.text for piece in pieces)
        own = sum(len(self.pattern.findall(piece.text)) for piece in pieces if not piece.is_content)
        return len(self.pattern.findall(whole)) != own

    def encode(self, pieces: list[Piece]) -> tuple[list[int], list[tuple[int, int]], list[Piece]]:
        """Token ids, with control tokens where the template has them and nowhere else.

        Returns ids [n], their spans [n], and the pieces whose joined text the spans are of. No
        content may hold `ALIAS`.
        """
        if self._twin is None:
            self._twin = self._made_twin()
        twin, original = self._twin
        renamed = [
            piece
            if piece.is_content
            else Piece(self.pattern.sub(self._alias, piece.text), learned=piece.learned)
            for piece in pieces
        ]
        made = twin.encode("".join(piece.text for piece in renamed), add_special_tokens=False)
        return [original.get(i, i) for i in made.ids], list(made.offsets), renamed

    def _alias(self, found: re.Match[str]) -> str:
        return self._aliases[found.group()]

    def _made_twin(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer with its control tokens under names that no data has, and its ids that
        differ: {the twin's: the tokenizer's}."""
        from tokenizers import AddedToken, Tokenizer

        made = json.loads(self._tokenizer.backend_tokenizer.to_str())
        made |= {"added_tokens": [], "truncation": None, "padding": None}
        model, name = made["model"], self._aliases
        added = {
            number: AddedToken(
                name.get(token.content, token.content),
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
            )
            for number, token in sorted(self._tokenizer.added_tokens_decoder.items())
        }
        # A vocabulary may hold a control token too, and find it in text by itself.
        if isinstance(model["vocab"], dict):
            model["vocab"] = {name.get(text, text): i for text, i in model["vocab"].items()}
            model["vocab"] |= {token.content: number for number, token in added.items()}
        else:
            model["vocab"] = [[name.get(text, text), score] for text, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = name.get(model["unk_token"], model["unk_token"])
        twin = Tokenizer.from_str(json.dumps(made))
        twin.add_tokens(list(added.values()))
        ids = {twin.token_to_id(token.content): number for number, token in added.items()}
        return twin, {own: number for own, number in ids.items() if own not in (number, None)}
