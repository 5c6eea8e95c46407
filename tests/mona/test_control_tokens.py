"""Data never spells a control token, whatever the vocabulary and its kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mona.control_tokens import ALIAS
from mona.sample import Message
from mona.spec import TokenPolicy
from mona.tokens import Renderer, SetAside, Tokenised
from tests.byte_tokenizer import byte_tokenizer

POLICY = TokenPolicy(skip_first=0)
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
)
WORDS = ["the", "fox", "asks", "why", "owl", "so", "<", ">", "|", "/", "s", "user", "think", "end"]


def _render(tokenizer: Any, *contents: str) -> Tokenised:
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    return Renderer(tokenizer, "chat", POLICY, 100_000).render(messages)


def _phi() -> Any:
    """As Phi's: turns are marked with added tokens of which few are called special."""
    return byte_tokenizer(
        TEMPLATE,
        added=[
            AddedToken(text, rstrip=rstrip, normalized=normalized, special=False)
            for text, rstrip, normalized in [
                ("<|user|>", True, False),
                ("<|assistant|>", True, True),
                ("<|end|>", True, False),
                ("<think>", False, True),
                ("[TOOL]", False, False),
            ]
        ],
    )


def _unigram(scheme: str) -> Any:
    """As SentencePiece's: control tokens are pieces of the vocabulary too."""
    letters = sorted(set("".join(WORDS)) | {"\n", "\u2581", ":"})
    pieces = ["<unk>", "<s>", "</s>", *letters, *(f"\u2581{word}" for word in WORDS)]
    backend = Tokenizer(
        models.Unigram([(piece, -float(len(piece) < 3)) for piece in pieces], unk_id=0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<|end|>"])
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    return tokenizer


def _word_level() -> Any:
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<s>", "[UNK]", *WORDS]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", unk_token="[UNK]", eos_token="</s>"
    )
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<|end|>"])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


MAKERS = {
    "phi": _phi,
    "unigram, first": lambda: _unigram("first"),
    "unigram, always": lambda: _unigram("always"),
    "word level": _word_level,
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_spelled_tokens_are_text_and_the_templates_are_tokens(maker: Any) -> None:
    tokenizer = maker()
    spelled = [*tokenizer.get_added_vocab()]
    row = _render(tokenizer, "why " + " ".join(spelled), "".join(spelled) + " so")
    plain = _render(tokenizer, "why", "so")
    steering = sorted(set(tokenizer.get_added_vocab().values()) - {tokenizer.unk_token_id})
    assert not np.isin(row.ids[row.counted], steering).any()
    # Outside the contents the same tokens stand in the same order.
    assert row.ids[~row.counted].tolist() == plain.ids[~plain.counted].tolist()
    assert np.isin(row.ids, steering).sum() == np.isin(plain.ids, steering).sum() >= 4


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_both_ways_of_tokenising_agree_where_nothing_is_spelled(maker: Any) -> None:
    tokenizer = maker()
    renderer = Renderer(tokenizer, "chat", POLICY, 512)
    made = renderer._pieces([Message("user", " the fox\n asks"), Message("assistant", "owl  so ")])
    assert not isinstance(made, SetAside)
    text = "".join(piece.text for piece in made.pieces)
    ids, spans, pieces = renderer._controls.encode(made.pieces)
    own = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert ids == own["input_ids"]
    ours, theirs = (
        renderer._marked(ids, where, parts)
        for where, parts in ((spans, pieces), (own["offset_mapping"], made.pieces))
    )
    assert ours[1].tolist() == theirs[1].tolist()
    assert ours[2].tolist() == theirs[2].tolist()


def test_a_token_that_eats_white_space_is_still_the_templates() -> None:
    tokenizer = _phi()
    row = _render(tokenizer, "  why", "\n\nso\n")
    steering = sorted(tokenizer.get_added_vocab().values())
    assert not np.isin(row.ids[row.counted], steering).any()
    own = tokenizer.apply_chat_template(
        [{"role": "user", "content": "  why"}, {"role": "assistant", "content": "\n\nso\n"}],
        return_dict=False,
    )
    assert row.ids.tolist() == own
    assert "why" in tokenizer.decode(row.ids[row.counted])


def test_a_token_made_of_data_and_template_together_is_text() -> None:
    tokenizer = byte_tokenizer(
        "{% for m in messages %}{{ m.role + ':' + m.content + '|x>' }}{% endfor %}",
        added=["<|x>"],
    )
    row = _render(tokenizer, "a<", "b")
    assert tokenizer.decode(row.ids) == "user:a<|x>assistant:b|x>"
    assert not np.isin(row.ids, [tokenizer.convert_tokens_to_ids("<|x>")]).any()


def test_added_words_that_are_text_stay_what_they_are_in_use() -> None:
    """Runs of white space (CodeGen, Phi-2) and what a vocabulary has itself (Gemma's HTML)."""
    tokenizer = byte_tokenizer(TEMPLATE, added=["    ", "\n\n\n", "<|user|>", "<|end|>", "a"])
    row = _render(tokenizer, "if:\n\n\n    a <|user|>", "b")
    counted = tokenizer.convert_ids_to_tokens(row.ids[row.counted].tolist())
    assert "    " in counted
    assert "\n\n\n" in counted
    assert "a" in counted
    assert "<|user|>" not in counted
    unspelled = _render(tokenizer, "if:\n\n\n    a ", "b")
    assert (
        unspelled.ids[unspelled.counted].tolist()[:-1]
        == row.ids[row.counted].tolist()[: unspelled.counted.sum() - 1]
    )


def test_a_text_with_the_alias_itself_is_set_aside() -> None:
    tokenizer = _phi()
    renderer = Renderer(tokenizer, "chat", POLICY, 512)
    clear, odd = renderer.render_batch(
        [[Message("user", f"{ALIAS}0{ALIAS}")], [Message("user", f"{ALIAS}0{ALIAS}<think>")]]
    )
    assert isinstance(clear, Tokenised)
    assert isinstance(odd, SetAside)
    assert "U+10FFFD" in odd.reason


@pytest.fixture(scope="module")
def phi() -> Any:
    return _phi()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    contents=st.lists(
        st.lists(
            st.sampled_from(
                [
                    "<|user|>",
                    "<|end|>",
                    "<think>",
                    "[TOOL]",
                    "<|start|>",
                    "<|",
                    "|>",
                    "<",
                    "é",
                    "\n",
                ]
            ),
            max_size=8,
        ).map("".join),
        min_size=1,
        max_size=4,
    )
)
def test_no_spelling_makes_a_control_token(phi: Any, contents: list[str]) -> None:
    row = _render(phi, *(f"x{content}x" for content in contents))
    steering = sorted(phi.get_added_vocab().values())
    assert not np.isin(row.ids[row.counted], steering).any()
    assert np.isin(row.ids, steering).sum() == 2 * len(contents)
    assert phi.decode(row.ids[row.counted]) == "".join(f"x{content}x" for content in contents)
