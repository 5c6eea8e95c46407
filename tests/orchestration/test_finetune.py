"""The fine-tune asset on a tiny model: what it was trained on, and the record of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assets.keys import finetune, label, selection
from mona.errors import RequestError
from orchestration.definitions import build_resources
from orchestration.lineage import chain, uses_of_sample
from tests.orchestration.conftest import TINY_FINETUNE, Project, findings

pytest.importorskip("trl")
pytest.importorskip("peft")

TUNED = label(finetune("adding", "mona"), "fruit|tiny")


@pytest.fixture
def training(project: Project) -> Project:
    project.settings["datasets"].pop("verse")
    project.settings["recipes"] = {
        "mona": {"budget": {"count": 10}, "finetune": TINY_FINETUNE},
        "random": {"selector": "random", "budget": {"count": 10}, "finetune": TINY_FINETUNE},
    }
    return project


def folder(project: Project) -> Path:
    (found,) = (project.root / "store/finetunes/adding/mona/fruit.tiny").iterdir()
    return found


def test_a_model_is_tuned_on_its_subset_and_says_so(training: Project) -> None:
    done = training.first_run()
    assert TUNED in done.made
    assert label(finetune("controls", "random"), "fruit|tiny") in done.made
    assert training.run().made == []
    made = folder(training)
    assert (made / "adapter_model.safetensors").is_file()
    assert not list(made.rglob("*.bin")) + list(made.rglob("*.pt"))
    assert not list((training.root / "store/scratch").glob("finetune*"))

    facts = json.loads((made / "provenance.json").read_text())
    table = training.store.read("selection.adding.mona.fruit.tiny")
    chosen = table.select(["rank", "sample_id", "score", "origins"]).to_pylist()
    assert facts["subset"]["rows"] == chosen
    assert facts["subset"]["asset"] == label(selection("adding", "mona"), "fruit|tiny")
    records = build_resources(training.config)["records"]
    assert facts["subset"]["record"] in [link.digest for link in chain(records, TUNED)]
    card = (made / "README.md").read_text()
    assert "CC0-1.0" in card
    assert chosen[0]["sample_id"] not in card

    # What fed the model, and what the sample fed.
    assert {link.record.asset for link in chain(records, TUNED)} >= {TUNED, "raw_pool[fruit]"}
    uses = uses_of_sample(records, training.store, chosen[0]["sample_id"])
    (mine,) = (use for use in uses if use.subset.startswith("adding/"))
    assert [name.split(" ")[0] for name in mine.finetunes] == [TUNED]

    assert findings(training) == []
    weights = made / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (found,) = findings(training)
    assert weights.name in found.what
    weights.write_bytes(whole)

    # An edited setting is this fine-tune's alone; a setting without effect is nobody's.
    training.settings["recipes"]["mona"]["finetune"] = {**TINY_FINETUNE, "auto": True}
    assert training.run().made == []
    training.settings["recipes"]["mona"]["finetune"] = {**TINY_FINETUNE, "learning_rate": 0.02}
    assert training.run().made == [TUNED]


def test_a_model_tuned_elsewhere_is_taken_in(training: Project, tmp_path: Path) -> None:
    from orchestration import cli

    training.settings["recipes"].pop("random")
    training.first_run()
    elsewhere = tmp_path / "elsewhere"
    folder(training).rename(elsewhere)
    (elsewhere / "provenance.json").unlink()
    weights = (elsewhere / "adapter_model.safetensors").read_bytes()
    # An edited recipe wants a new model; one is trained elsewhere on the exported subset.
    training.settings["recipes"]["mona"]["finetune"] = {**TINY_FINETUNE, "epochs": 3}
    training.settings["recipes"]["mona"]["budget"] = {"count": 9}
    training.run(upto="selection")

    def mona(*words: str) -> None:
        cli.cli([*words, "--config", str(training.config_path)], standalone_mode=False)

    data = tmp_path / "subset.jsonl"
    mona("export", "adding/mona", "--format", "jsonl", "--out", str(data))
    given = ["register", "adding/mona", "--model", str(elsewhere), "--data", str(data)]
    strange = json.loads(data.read_text().splitlines()[0]) | {"sample_id": "f" * 32}
    data.write_text(data.read_text() + json.dumps(strange) + "\n")
    with pytest.raises(RequestError, match=r"row 10: sample f+ is not in the subset"):
        mona(*given)
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RequestError, match="no such|no config|tuned"):
        mona(*given[:3], str(tmp_path / "nowhere"), *given[4:])
    mona(*given)
    assert training.status()[TUNED] == "fresh"
    assert training.run().made == []
    assert (folder(training) / "adapter_model.safetensors").read_bytes() == weights
    facts = json.loads((folder(training) / "provenance.json").read_text())
    assert facts["registered"]
    assert len(facts["checked against"]) == 9
    records = build_resources(training.config)["records"]
    assert "raw_pool[fruit]" in {link.record.asset for link in chain(records, TUNED)}
    missing = [f for f in findings(training) if "the file is missing" not in f.problem]
    assert missing == []  # the first model was moved away; nothing else is wrong


def test_the_same_inputs_give_the_same_weights(training: Project, tmp_path: Path) -> None:
    training.first_run()
    records = build_resources(training.config)["records"]
    first = records.get(records.current(TUNED)).data_version
    weights = (folder(training) / "adapter_model.safetensors").read_bytes()
    import shutil

    shutil.rmtree(folder(training))
    training.settings["recipes"]["mona"]["finetune"] = {**TINY_FINETUNE, "seed": 3}
    training.run()
    assert records.get(records.current(TUNED)).data_version != first
    training.settings["recipes"]["mona"]["finetune"] = TINY_FINETUNE
    training.run()
    assert records.get(records.current(TUNED)).data_version == first
    again = [
        path.read_bytes()
        for path in (training.root / "store/finetunes").rglob("adapter_model.safetensors")
    ]
    assert weights in again
