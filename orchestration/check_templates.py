"""Templates that would be of no use with their model's tokenizer: a check of `mona check`.

Which faults there are is `mona.tokens.template_faults`; here is which templates are asked for,
of models that encode and of models that are tuned.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mona.errors import MonaError
from mona.spec import LanguageModel

if TYPE_CHECKING:
    from orchestration.check import Scope


def templates(scope: Scope) -> Iterator[str]:
    """A template that no conversation can be rendered with, or that teaches no model to stop."""
    from mona.tokens import template_faults

    tokenizers: dict[Path, Any] = {}

    def tokenizer(name: str, given: LanguageModel) -> Any:
        """None where the model's own check says more: no folder, no tokenizer that loads."""
        try:
            folder = scope.shelf.folder_at_hand(name, given)
        except MonaError:
            return None
        if folder is not None and folder not in tokenizers:
            tokenizers[folder] = _loaded(folder, given.trust_remote_code)
        return None if folder is None else tokenizers[folder]

    for name in scope.models:
        model = scope.config.models[name]
        found = tokenizer(name, model.language_model)
        if found is not None:
            for fault in template_faults(found, model.template):
                yield f"models.{name}.template: {fault}"
    for name in scope.recipes:
        recipe = scope.config.recipes[name]
        if recipe.finetune is None or recipe.selector == "none":
            continue
        where = f"recipes.{name}.finetune"
        own = recipe.finetune.base
        bases = [own] if own else [scope.config.models[m].language_model for m in scope.models]
        for base in bases:
            found = tokenizer(f"{where}.base", base)
            if found is not None:
                for fault in template_faults(found, recipe.finetune.template, tuned=True):
                    yield f"{where}.template with {base.public_name}: {fault}"


def _loaded(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, TypeError, LookupError, RuntimeError):
        return None
