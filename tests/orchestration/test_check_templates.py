"""`mona check` says what is wrong with a template before anything is encoded or tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestration.check import Scope
from orchestration.check_templates import templates
from orchestration.config import load_config
from resources.models import Models
from resources.sources import Sources
from tests.byte_tokenizer import byte_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|stop|>' }}{% endfor %}"
)
ENDLESS = CHATML.replace(" + '<|stop|>'", "")

PROJECT = """
store: {{root: store}}
datasets:
  d: {{sources: [{{name: s, path: rows.jsonl}}]}}
models:
  m:
    language_model: {{path: {model}}}
    template: {encodes}
    sae: {{train: {{datasets: [d]}}}}
targets:
  t: {{reader: pool, examples: {{path: rows.jsonl}}}}
recipes:
  r: {{budget: {{share: 0.5}}, finetune: {{template: {tunes}}}}}
"""


def _faults(folder: Path, tokenizer: Any, encodes: str = "chat", tunes: str = "chat") -> list[str]:
    (folder / "model").mkdir(parents=True)
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text('{"prompt": "q", "completion": "a"}\n', encoding="utf-8")
    path = folder / "project.yaml"
    path.write_text(PROJECT.format(model=folder / "model", encodes=encodes, tunes=tunes), "utf-8")
    config = load_config(str(path))
    home = str(folder / "home")
    return list(templates(Scope.of(config, Sources(home=home), Models(home=home, device="cpu"))))


def test_a_sound_template_has_no_faults(tmp_path: Path) -> None:
    assert _faults(tmp_path, byte_tokenizer(CHATML)) == []


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        ("{{ messages }", "is no Jinja"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "drops the text"),
        ({"a": CHATML, "b": CHATML}, "several chat templates (a, b)"),
    ],
)
def test_each_use_of_an_unusable_template_is_named(
    tmp_path: Path, template: Any, said: str
) -> None:
    encodes, tunes = _faults(tmp_path / "both", byte_tokenizer(template))
    assert encodes.startswith("models.m.template: ")
    assert tunes.startswith("recipes.r.finetune.template with model: ")
    assert said in encodes
    assert said in tunes
    assert _faults(tmp_path / "one", byte_tokenizer(template), encodes="plain") == [tunes]
    assert _faults(tmp_path / "none", byte_tokenizer(template), "olmo", "llama2") == []


def test_a_template_without_an_end_is_a_fault_where_it_is_tuned_on(tmp_path: Path) -> None:
    assert _faults(tmp_path / "end", byte_tokenizer(ENDLESS)) == []
    (fault,) = _faults(tmp_path / "endless", byte_tokenizer(ENDLESS, eos=None))
    assert fault.startswith("recipes.r.finetune.template")
    assert "never learn to stop" in fault


def test_a_folder_without_a_tokenizer_is_left_to_the_models_check(tmp_path: Path) -> None:
    class Nothing:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "config.json").write_text("{", encoding="utf-8")

    assert _faults(tmp_path, Nothing()) == []
