"""Model folders: what a language model's files must be, and the digest that names them.

A model folder holds `config.json`, safetensors weights and a fast tokenizer. Making one
from a GGUF file is here too. Running a model is `mona.encoder`; tuned ones are `mona.tuned`.
Importing this module brings in neither torch nor transformers, so that a status report can
call `model_digest`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mona.errors import RequestError, WorkError, sentence
from mona.files import file_digest
from mona.publishing import published_folder

if TYPE_CHECKING:
    from torch import nn

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# Every file that decides what a text's activations are. Generation settings, licences and
# read-me files do not. Python files count because a model may be allowed to run its own code.
_DECIDING_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.py",
    "config.json",
    *TOKENIZER_FILES,
)
_LFS_POINTER = b"version https://git-lfs"
POINTER_FAULT = "a git LFS pointer, not the file itself: run 'git lfs pull' in its repository"


def deciding_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide results, sorted by name.

    Raises RequestError unless `folder` has a config.json and safetensors weights.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such model folder")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled:
            raise RequestError(
                f"{folder}: weights are pickled ({pickled[0]}); only *.safetensors are read"
            )
        raise RequestError(f"{folder}: no *.safetensors weights")
    if not (folder / "config.json").is_file():
        raise RequestError(f"{folder}: no config.json")
    return matching_files(folder, _DECIDING_PATTERNS)


def matching_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of `folder` that match one of the patterns or more, sorted by name."""
    paths = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(paths, key=lambda path: path.name)


def model_digest(folder: Path) -> str:
    """SHA-256, in hex, over the (name, SHA-256) of `deciding_files`. Reads every byte."""
    return files_digest(deciding_files(folder))


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256, in hex, over the (name, SHA-256) of the files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{file_digest(path)}  {path.name}\n".encode())
    return digest.hexdigest()


def quiet_transformers() -> None:
    """Turns off transformers' progress bars and its warnings; errors still show."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def is_pointer(path: Path) -> bool:
    """Whether the file is git LFS' note of where its content would be."""
    with path.open("rb") as stream:
        return stream.read(len(_LFS_POINTER)) == _LFS_POINTER


def gguf_faults(gguf: Path) -> list[str]:
    """What the file's first bytes show, a line each: that it is missing, or no GGUF file."""
    if not gguf.is_file():
        return [f"{gguf}: no such file"]
    if is_pointer(gguf):
        return [f"{gguf}: {POINTER_FAULT}"]
    with gguf.open("rb") as stream:
        return [] if stream.read(4) == b"GGUF" else [f"{gguf}: not a GGUF file"]


def prepare_gguf(gguf: Path, out: Path) -> None:
    """Write the model and tokenizer inside the file `gguf` as the model folder `out`.

    Weights are stored as float32: a dequantised value (scale x integer + offset) seldom fits
    16 bits, so this keeps the model that was given, and what dtype it runs in stays the
    encoder's choice. `out` appears complete or not at all; if another process made it
    meanwhile, that one stays. Raises RequestError if the file is missing or is no GGUF model
    that the library reads, WorkError naming the tensor if a weight is not finite.
    """
    faults = gguf_faults(gguf)
    if faults:
        raise RequestError(faults[0])
    quiet_transformers()
    try:
        model, tokenizer, missing = _read_gguf(gguf)
    except MemoryError:
        raise
    # Whatever the libraries raise while they read a user's file is a fault of that file.
    except Exception as error:
        raise RequestError(f"{gguf}: no GGUF model that can be read: {sentence(error)}") from error
    if missing:
        # transformers has filled them with random values.
        raise RequestError(f"{gguf}: no weights for tensor '{min(missing)}'")
    refuse_nan(model, str(gguf))
    # save_pretrained refuses a model that says it is quantised; its weights no longer are.
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    plain = type(model)(type(model.config).from_dict(settings))
    plain.load_state_dict(model.state_dict())

    with published_folder(out) as partial:
        plain.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def _read_gguf(gguf: Path) -> tuple[Any, Any, set[str]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name, "local_files_only": True}
    # The tokenizer first: it is read sooner, and a damaged file mostly shows in it.
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, output_loading_info=True, **source
    )
    model, loading = loaded
    return model, tokenizer, set(loading["missing_keys"])


def refuse_nan(model: nn.Module, name: str) -> None:
    """Raises WorkError naming `name` and the first tensor that holds a NaN or an infinity."""
    import torch

    for tensor_name, tensor in model.named_parameters():
        # Summing is one pass without a mask as large as the tensor; only a suspect is looked
        # at closely, for a sum may overflow where no value does.
        suspect = not torch.isfinite(tensor.detach().sum())
        if suspect and not torch.isfinite(tensor.detach()).all():
            raise WorkError(f"{name}: tensor '{tensor_name}' holds a value that is not finite")
