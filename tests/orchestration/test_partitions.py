"""Two models, two datasets: four partitions that never meet; pretrained SAEs; drifting pools."""

from __future__ import annotations

import json
from typing import Any

import dagster as dg
import numpy as np
import pytest
from dagster._core.event_api import PartitionKeyFilter

from assets.keys import ACTIVATIONS, SAE, SAE_CODES, selection
from mona.codes import from_arrow
from mona.sae import SparseAutoencoder
from orchestration.definitions import build_resources
from orchestration.home import open_instance
from tests.orchestration.conftest import Project
from tests.orchestration.test_incremental import codes_by_id

FOUR = {"fruit|tiny", "fruit|other", "verse|tiny", "verse|other"}


def sae_digest(project: Project, model: str) -> str:
    """Which SAE is a model's, as its record says."""
    records = build_resources(project.config)["records"]
    return str(records.get(records.current(f"sae[{model}]")).about["sae"])


def current_sae(project: Project, model: str) -> SparseAutoencoder:
    return build_resources(project.config)["shelf"].sae(model, sae_digest(project, model))


def mean(codes: list[dict[int, float]]) -> dict[int, float]:
    latents = {latent for code in codes for latent in code}
    return {k: sum(code.get(k, 0.0) for code in codes) / len(codes) for k in latents}


def jaccard(a: dict[int, float], b: dict[int, float]) -> float:
    least = sum(min(a[k], b[k]) for k in a.keys() & b.keys())
    return least / (sum(a.values()) + sum(b.values()) - least)


def last_check(project: Project, key: dg.AssetKey, name: str, partition: str) -> Any:
    """The newest evaluation of a check on one partition."""
    with open_instance(project.config) as instance:
        (record,) = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(key, name),
            limit=1,
            partition_filter=PartitionKeyFilter(key=partition),
        )
        assert record.event is not None
        return record.event.asset_check_evaluation


def test_two_models_and_two_datasets_are_four_partitions(project: Project) -> None:
    other = json.loads(json.dumps(project.settings["models"]["tiny"]))
    other["layer"] = -3
    project.settings["models"]["other"] = other
    project.run()
    assert set(project.status().values()) == {"fresh"}
    with open_instance(project.config) as instance:
        for key in (ACTIVATIONS, SAE_CODES, selection("adding", "mona")):
            assert instance.get_materialized_partitions(key) == FOUR
            versions = {
                instance.get_latest_data_version_record(
                    key, partition_key=partition
                ).event_log_entry.asset_materialization.tags["dagster/data_version"]  # type: ignore[union-attr, index]
                for partition in FOUR
            }
            assert len(versions) == 4 or key == selection("adding", "mona")
    for partition in FOUR:
        dataset, model = partition.split("|")
        pool = codes_by_id(project, f"codes.{dataset}.{model}.")
        prototype = mean(list(codes_by_id(project, f"example_codes.adding.{model}.").values()))
        scores = {sample: jaccard(code, prototype) for sample, code in pool.items()}
        ranked = sorted(scores, key=lambda sample: (-scores[sample], sample))[:10]
        rows = project.store.read(f"selection.adding.mona.{dataset}.{model}")
        assert rows.column("sample_id").to_pylist() == ranked
        expected = [scores[sample] for sample in ranked]
        np.testing.assert_allclose(rows.column("score").to_numpy(), expected, rtol=1e-5)

    project.settings["models"]["other"]["k"] = 4
    stale = {name for name, state in project.status().items() if state == "stale"}
    assert stale == {
        "sae_codes[fruit|other]",
        "sae_codes[verse|other]",
        "adding/prototype[other]",
    }


def eleuther_copy(project: Project, model: str, name: str) -> str:
    """A model's trained SAE written as EleutherAI's sparsify writes one, in a subfolder."""
    from safetensors.torch import save_file

    sae = current_sae(project, model)
    folder = project.root / "eleuther" / name
    folder.mkdir(parents=True)
    tensors = {
        "encoder.weight": sae.w_enc.T.contiguous(),
        "encoder.bias": sae.b_enc,
        "W_dec": sae.w_dec,
        "b_dec": sae.b_dec,
    }
    save_file(tensors, folder / "sae.safetensors")
    config = {"d_in": sae.d, "num_latents": sae.latents, "k": sae.k}
    (folder / "cfg.json").write_text(json.dumps(config))
    return str(folder.parent)


@pytest.mark.parametrize(("layer", "fits"), [(-2, True), (-3, False)])
def test_a_pretrained_sae_is_read_and_a_layer_off_by_one_is_seen(
    project: Project, layer: int, fits: bool
) -> None:
    project.first_run(datasets=("fruit",), upto="sae_codes")
    loaded = json.loads(json.dumps(project.settings["models"]["tiny"]))
    loaded["layer"] = layer
    # A folder whose name says another layer is refused; one that says none is measured.
    name = "layers.4" if fits else "mine"
    loaded["sae"] = {
        "load": {
            "path": eleuther_copy(project, "tiny", name),
            "subfolder": name,
            "format": "eleuther",
        },
        "quality_datasets": ["fruit"],
        "quality_tokens": 500,
        "max_fvu": 20.0,
    }
    project.settings["models"]["loaded"] = loaded
    project.run(datasets=("fruit",), models=("loaded",), upto="sae_codes")
    record = build_resources(project.config)["shelf"].sae_figures(
        "loaded", sae_digest(project, "loaded")
    )
    by_layer = {int(layer): fvu for layer, fvu in record["fvu_by_layer"].items()}
    assert min(by_layer, key=lambda layer: by_layer[layer]) == 4
    assert sorted(by_layer) == ([3, 4, 5] if fits else [2, 3, 4])
    assert by_layer[record["layer"]] == pytest.approx(record["quality"]["fvu"], rel=1e-4)
    found = last_check(project, SAE, "layer_fits", "loaded")
    assert found.passed == fits
    assert found.severity == dg.AssetCheckSeverity.WARN
    if fits:
        assert codes_by_id(project, "codes.fruit.loaded.") == codes_by_id(
            project, "codes.fruit.tiny."
        )


def test_a_pinned_sae_is_judged_on_the_rows_just_added(project: Project) -> None:
    project.first_run(datasets=("fruit",), upto="sae_codes")
    assert last_check(project, SAE_CODES, "explains_new_rows", "fruit|tiny").passed
    old = set(codes_by_id(project, "codes.fruit."))
    figures = build_resources(project.config)["shelf"].sae_figures
    fvu = figures("tiny", sae_digest(project, "tiny"))["quality"]["fvu"]
    project.settings["models"]["tiny"]["sae"]["max_fvu"] = fvu * 1.001  # the SAE itself passes
    strange = [
        {"instruction": f"{i} ~~ ## @@ " * 9, "input": "", "output": f"%% {i} ^^ << >> " * 9}
        for i in range(5)
    ]
    project.write_rows("fruit", project.rows("fruit") + strange)
    done = project.run(datasets=("fruit",), upto="sae_codes")
    assert "sae[tiny]" in done.fresh
    found = last_check(project, SAE_CODES, "explains_new_rows", "fruit|tiny")
    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.WARN

    # The same figure from the cached tokens of the five rows, by the formula.
    sae = current_sae(project, "tiny")
    rows = project.store.read(project.table("activations.fruit."), ["sample_id", "tokens"])
    streams = [
        np.frombuffer(row["tokens"], np.float32).reshape(-1, sae.d).astype(np.float64)
        for row in rows.to_pylist()
        if row["sample_id"] not in old
    ]
    assert len(streams) == 5
    x = np.concatenate(streams)
    w_enc, b_enc, w_dec, b_dec = (
        t.numpy().astype(np.float64) for t in (sae.w_enc, sae.b_enc, sae.w_dec, sae.b_dec)
    )
    pre = (x - b_dec) @ w_enc + b_enc
    kept = np.where(pre >= np.sort(pre, axis=1)[:, [-sae.k]], np.maximum(pre, 0), 0)
    fvu = ((x - kept @ w_dec - b_dec) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    assert found.metadata["fvu"].value == pytest.approx(fvu, rel=1e-3)


def test_codes_stay_readable_by_polars(project: Project) -> None:
    """What a user does with the store, without this project's code."""
    import polars as pl

    project.first_run(datasets=("fruit",), upto="sae_codes")
    table = project.store.open(project.table("codes.fruit.")).to_arrow()
    frame = pl.DataFrame(table)
    sums_of_values = frame.select(pl.col("values").cast(pl.List(pl.Float32)).list.sum())
    np.testing.assert_allclose(
        sums_of_values.to_series().to_numpy(), from_arrow(table).l1, rtol=1e-5
    )
