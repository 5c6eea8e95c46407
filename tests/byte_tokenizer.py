"""A tokenizer with one token a byte, so that positions and decoded texts can be told by eye."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def byte_tokenizer(
    template: str | dict[str, str] | None,
    *,
    special: Sequence[str] = (),
    added: Sequence[Any] = (),
    bos: str | None = "<|start|>",
    eos: str | None = "<|stop|>",
) -> Any:
    """special: further tokens marked special; added: those that are not, texts or AddedTokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=list(special),
    )
    tokenizer.add_tokens(list(added))
    tokenizer.chat_template = template
    return tokenizer


def put_first(tokenizer: Any, token: str) -> None:
    """Lets the tokenizer's post-processor put a token before every text."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token} $B",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token))],
    )
