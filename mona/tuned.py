"""Tuned models as published by `mona.finetune`: naming and loading them.

A tuned folder holds an adapter, to be put on its base model, or a whole model. Importing this
module brings in neither torch nor transformers.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mona.checkpoints import (
    TOKENIZER_FILES,
    deciding_files,
    files_digest,
    matching_files,
    model_digest,
    quiet_transformers,
)
from mona.errors import RequestError, WorkError, sentence

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether the tuned folder needs its base model."""
    return (folder / ADAPTER_CONFIG).is_file()


def tuned_digest(folder: Path) -> str:
    """SHA-256, in hex, over the (name, SHA-256) of the files that decide results.

    Of a whole model that is its `model_digest`; of an adapter, weights, configuration and
    tokenizer (the base has its own digest). The training log has no part in it. RequestError
    where `folder` is neither.
    """
    if not is_adapter(folder):
        return model_digest(folder)
    _require_weights(folder)
    return files_digest(matching_files(folder, (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER_FILES)))


def load_tuned(
    folder: Path, base_folder: Path, device: str, dtype: str, *, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """The tuned model, in evaluation mode on `device`, and its tokenizer.

    dtype: 'float32' or 'bfloat16'. In float32 an adapter is merged into the base's weights,
    which changes them by what the adapter says and rounding. In bfloat16 most of an adapter's
    small updates would round away in the sum, so it stays beside the weights, as layers inside
    an ordinary transformers model. Local files and safetensors only.

    Raises RequestError where a folder is not what it should be, WorkError where the adapter
    does not fit the base.
    """
    adapter = is_adapter(folder)
    whole = base_folder if adapter else folder
    deciding_files(whole)
    if adapter:
        _require_weights(folder)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model: Any = AutoModelForCausalLM.from_pretrained(
            whole, dtype=getattr(torch, dtype), use_safetensors=True, **local
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    # Whatever the library raises while it reads a user's model is a fault of that model.
    except Exception as error:
        raise RequestError(f"{whole}: the model does not load: {sentence(error)}") from error
    if adapter:
        model = _with_adapter(model, folder, base_folder, merge=dtype == "float32")
    return model.to(device).eval(), tokenizer


def _require_weights(folder: Path) -> None:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise RequestError(f"{folder}: an adapter without {ADAPTER_WEIGHTS}")


def _with_adapter(model: Any, folder: Path, base_folder: Path, *, merge: bool) -> Any:
    if find_spec("peft") is None:
        raise RequestError("an adapter needs peft: pip install 'mona-select[finetune]'")
    from peft import PeftModel

    try:
        # Adapters in the base's dtype: float32 ones would be multiplied at float32's speed.
        tuned = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    except (RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WorkError(f"{folder}: does not fit the model in {base_folder}: {first}") from error
    return tuned.merge_and_unload() if merge else tuned.get_base_model()
