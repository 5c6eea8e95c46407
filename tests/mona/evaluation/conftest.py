"""The tiny model of the evaluation's tests, loaded once a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> Iterator[tuple[Any, Any]]:
    """(model, tokenizer), float32, on one thread: such small products only wait for a second."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield model, AutoTokenizer.from_pretrained(tiny_llama)
    torch.set_num_threads(threads)
