"""What `import mona` gives: light to import, every example true, and the page as it is printed."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mona
from mona.control_tokens import ALIAS
from mona.errors import RequestError, WorkError
from mona.explanation import parts
from mona.sample import Message, sample_id

PAGE = Path(__file__).resolve().parents[2] / "docs" / "notebook.md"
HEAVY = ("torch", "transformers", "lancedb", "dagster", "pyarrow", "polars")
FRUITS = ("plum", "fig", "quince")


def write_pool(path: Path, first: int, count: int) -> Path:
    rows = [
        {
            "instruction": f"How many {FRUITS[i % 3]}s are {i + 2} {FRUITS[i % 3]}s and 1 more?",
            "output": f"{i + 3} {FRUITS[i % 3]}s" + " in the basket" * (i % 4) + ".",
        }
        for i in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The files that the examples name, with `tmp_path` as the working folder."""
    import torch

    torch.manual_seed(0)
    encoding, nothing = torch.randn(32, 64), torch.zeros(64)
    sae = mona.SparseAutoencoder(
        encoding, nothing, encoding.T.contiguous(), torch.zeros(32), "topk", k=4
    )
    sae.save(tmp_path / "sae")
    (tmp_path / "model").symlink_to(tiny_llama)
    write_pool(tmp_path / "pool.jsonl", 0, 12)
    write_pool(tmp_path / "examples.jsonl", 40, 3)
    monkeypatch.chdir(tmp_path)
    return {
        "pool_file": tmp_path / "pool.jsonl",
        "model_folder": tmp_path / "model",
        "sae_folder": tmp_path / "sae",
    }


def test_importing_it_loads_nothing_heavy() -> None:
    script = (
        "import sys, mona\n"
        "assert set(mona.__all__) <= set(dir(mona))\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "mona.read_pool, mona.select, mona.score_codes, mona.explain\n"
        f"print([name for name in {HEAVY[:4]} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(mona, "dagster")
    with pytest.raises(AttributeError, match="no attribute 'Encodr'"):
        mona.Encodr  # noqa: B018


@pytest.mark.parametrize("name", mona.__all__)
def test_each_name_has_an_example_that_runs(name: str, files: dict[str, Path]) -> None:
    found = doctest.DocTestFinder(recurse=False).find(getattr(mona, name), name, globs={**files})
    (example,) = (test for test in found if test.examples)
    said: list[str] = []
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


def test_the_pages_code_runs_and_exports_the_chosen(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    made: dict[str, Any] = {}
    exec("".join(blocks), made)
    assert len(capsys.readouterr().out.splitlines()) == 3
    written = json.loads(Path("subset/subset.json").read_text(encoding="utf-8"))
    order = np.lexsort((made["ids"], -made["scores"]))[:3]
    assert [row["sample_id"] for row in written] == [made["ids"][i] for i in order]
    assert {row["licence"] for row in written} == {"CC-BY-4.0"}


def test_codes_stand_in_the_order_of_the_samples(files: dict[str, Path]) -> None:
    encoder = mona.Encoder.load(files["model_folder"], layer=3)
    sae = mona.SparseAutoencoder.load(files["sae_folder"])
    pool = mona.read_pool(files["pool_file"])
    together = mona.encode(pool, encoder, sae)
    for i, sample in enumerate(pool):
        (alone,) = (mona.encode([sample], encoder, sae),)
        span = slice(together.indptr[i], together.indptr[i + 1])
        row = dict(zip(together.indices[span], together.values[span], strict=True))
        for latent, value in zip(alone.indices, alone.values, strict=True):
            assert row[latent] == pytest.approx(value, rel=0.01, abs=0.01)
    assert len(mona.encode([], encoder, sae)) == 0
    assert mona.encode(pool, encoder, sae, k=1).l1.sum() < together.l1.sum()
    total = mona.encode(pool, encoder, sae, pooling="sum")
    assert (total.l1 > 5 * together.l1).all()


def test_an_explanation_is_of_the_samples_own_score(files: dict[str, Path]) -> None:
    encoder = mona.Encoder.load(files["model_folder"], layer=3)
    sae = mona.SparseAutoencoder.load(files["sae_folder"])
    pool = mona.read_pool(files["pool_file"])
    prototype = mona.mean_prototype(mona.encode(pool[1:4], encoder, sae), sae.latents)
    code = mona.encode(pool[:1], encoder, sae)
    score = float(mona.score_codes(code, prototype[None], "jaccard")[0, 0])
    why = mona.explain(pool[0], prototype, encoder, sae, count=64)
    assert sum(part.part for part, _ in why) == pytest.approx(score, abs=1e-5)
    assert [part for part, _ in why] == parts(code, prototype, "jaccard")
    text = "".join(message.content for message in pool[0].messages)
    assert all(context is not None and context.token in text for _, context in why)
    with pytest.raises(RequestError, match="euclidean"):
        mona.explain(pool[0], prototype, encoder, sae, similarity="euclidean")


def test_a_pool_says_what_it_left_out_and_merges_what_is_twice(tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.jsonl", 0, 6)
    twice = write_pool(tmp_path / "twice.jsonl", 4, 4)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"instruction": "no answer"}\n')
    with pytest.warns(UserWarning, match="8 samples of 11 rows; 1 set aside"):
        pool = mona.read_pool(path, twice, source="sums", max_bad_rows=0.2)
    assert [sample.id for sample in pool] == [sample_id(sample.messages) for sample in pool]
    assert len(pool) == len({sample.id for sample in pool}) == 8
    assert {(sample.source, sample.licence) for sample in pool} == {("sums", "unknown")}
    with pytest.raises(RequestError, match=r"format: 'alpacca' is no .* mean 'alpaca'\?"):
        mona.read_pool(path, format="alpacca")
    with pytest.raises(RequestError, match="read_pool: name: .*reserved"):
        mona.read_pool(path, source="pool")
    with pytest.raises(WorkError, match=r"1 of 7 rows are bad"):
        mona.read_pool(path)
    with pytest.raises(RequestError, match=r"none\.jsonl: there is no such file"):
        mona.read_pool(tmp_path / "none.jsonl")
    with pytest.raises(RequestError, match="no files"):
        mona.read_pool()


def test_a_sample_that_no_template_renders_is_named_and_never_zeros(
    files: dict[str, Path],
) -> None:
    encoder = mona.Encoder.load(files["model_folder"], layer=3)
    sae = mona.SparseAutoencoder.load(files["sae_folder"])
    turns = (Message("user", f"<|stop|>{ALIAS}"), Message("assistant", "4"))
    odd = mona.Sample(sample_id(turns), turns, "pool", "unknown")
    with pytest.raises(WorkError, match=f"sample {odd.id} can't be rendered truly: "):
        mona.encode([*mona.read_pool(files["pool_file"]), odd], encoder, sae)


def test_exporting_what_was_not_chosen_from_these_is_refused(files: dict[str, Path]) -> None:
    pool = mona.read_pool(files["pool_file"])
    ids = [sample.id for sample in pool]
    chosen = mona.select([(ids, np.arange(12.0))], mona.Budget(count=3), len(ids))
    with pytest.raises(ValueError, match=f"2 chosen samples .* first {ids[11]}"):
        mona.export_selection(chosen, pool[:10], "jsonl", "out.jsonl")
    assert not Path("out.jsonl").exists()
    assert mona.export_selection(chosen, pool, "jsonl", "out.jsonl") == [Path("out.jsonl")]
    with pytest.raises(RequestError, match="exists"):
        mona.export_selection(chosen, pool, "jsonl", "out.jsonl")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(row["sample_id"], row["rank"], row["score"]) for row in rows] == [
        (ids[11], 1, 11.0),
        (ids[10], 2, 10.0),
        (ids[9], 3, 9.0),
    ]
