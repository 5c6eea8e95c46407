"""What reaches a hub, against one on this machine that speaks the hub's protocol."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from assets import retries
from assets.keys import RAW_POOL, examples
from orchestration.definitions import build_definitions, build_resources
from orchestration.home import QUIET, open_instance
from tests.fake_hub import FakeHub, serving
from tests.orchestration.conftest import Project, small_project, sums, verses
from tests.orchestration.test_cli import mona, one_line

pytest.importorskip("datasets")


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with serving(FakeHub()) as served:
        yield served


class Elsewhere:
    """Another process, in which the libraries have read of the fake hub when they were
    imported, and in which retries don't wait."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        # A new process takes the environment as it is when the first call starts it.
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("HF_HUB_OFFLINE", raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            self.call(_without_waiting)

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        return self._pool.submit(function, *given).result(timeout=300)

    def mona(self, project: Project, *words: str) -> subprocess.CompletedProcess[str]:
        return self.call(mona, project, *words)

    def made(self, project: Project, *words: str) -> list[str]:
        """What `mona run` made."""
        done = self.mona(project, "run", "--json", *words)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["made"])

    def close(self) -> None:
        self._pool.shutdown()


def _without_waiting() -> None:
    retries.FIRST_WAIT_SECONDS = 0.01


@pytest.fixture(scope="module")
def elsewhere(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    cache = tmp_path_factory.mktemp("hub") / "cache"
    made = Elsewhere({"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_TOKEN": ""})
    yield made
    made.close()


@pytest.fixture
def project(tmp_path: Path, tiny_llama: Path) -> Project:
    made = small_project(tmp_path, tiny_llama)
    made.write_rows("fruit", sums(0, 20) + verses(0, 20))
    sae = made.settings["models"]["tiny"]["sae"]
    sae["train"].update(latents=64, tokens=2048)
    sae["quality_tokens"] = 200
    return made


def from_hub(project: Project, dataset: str, **hub: Any) -> None:
    """The dataset's only source becomes a hub's."""
    source = {"name": dataset, "hub": hub, "licence": "CC0-1.0"}
    project.settings["datasets"][dataset] = {"sources": [source]}


def record(project: Project, asset: str) -> Any:
    records = build_resources(project.config)["records"]
    return records.get(records.current(asset))


def texts(project: Project, dataset: str) -> set[str]:
    rows = project.store.read(f"pool.{dataset}", ["messages"]).to_pylist()
    return {row["messages"][-1]["content"] for row in rows}


def watch(project: Project) -> tuple[list[tuple[str | None, Any, str | None]], str | None]:
    """(requests, why none) of one tick of the sensor of hub revisions."""
    config = project.config
    repository = build_definitions(config).get_repository_def()
    sensor = repository.get_sensor_def("hub_revisions")
    # As Dagster evaluates it: a request of what the sensor may not target is an error.
    with (
        open_instance(config) as instance,
        dg.build_sensor_context(
            instance, repository_def=repository, resources=build_resources(config)
        ) as context,
    ):
        tick = sensor.evaluate_tick(context)
    requests = [
        (request.partition_key, request.asset_selection, request.run_key)
        for request in tick.run_requests or ()
    ]
    return requests, tick.skip_message


def refresh(project: Project, dataset: str | None, key: dg.AssetKey = RAW_POOL) -> None:
    """What the daemon does with the sensor's request."""
    config = project.config
    with open_instance(config) as instance:
        job = build_definitions(config).resolve_implicit_global_asset_job_def()
        job.execute_in_process(
            instance=instance,
            asset_selection=[key],
            partition_key=dataset,
            run_config=QUIET,
        )


def test_a_moved_branch_is_seen_and_moves_only_what_depends_on_it(
    project: Project, hub: FakeHub, elsewhere: Elsewhere
) -> None:
    rows = verses(100, 40)
    first = hub.push("datasets", "orchard/verse", {"data/train.jsonl": lines(rows)})
    from_hub(project, "verse", repo="orchard/verse", revision="main")
    assert "raw_pool[verse]" in elsewhere.made(project)
    assert texts(project, "verse") == {row["output"] for row in rows}
    made = record(project, "raw_pool[verse]")
    assert made.about["revisions"] == {"verse": first}
    assert made.about["sources"] == {"verse/orchard/verse": first}
    origins = project.store.read("pool.verse", ["origins"]).to_pylist()
    assert {row["origins"][0]["file"] for row in origins} == {f"orchard/verse@{first}"}
    assert elsewhere.call(watch, project)[0] == []
    hub.take_requests()
    assert elsewhere.made(project) == []
    # What is fresh asks nobody.
    assert hub.take_requests() == []

    rows = [*rows[4:], *sums(700, 3)]
    second = hub.push("datasets", "orchard/verse", {"data/train.jsonl": lines(rows)})
    requests, _ = elsewhere.call(watch, project)
    assert [request[:2] for request in requests] == [("verse", [RAW_POOL])]
    assert elsewhere.call(watch, project)[0] == requests
    elsewhere.call(refresh, project, "verse")
    assert texts(project, "verse") == {row["output"] for row in rows}
    assert record(project, "raw_pool[verse]").about["revisions"] == {"verse": second}
    assert elsewhere.call(watch, project)[0] == []
    assert elsewhere.made(project) == [
        "activations[verse|tiny]",
        "sae_codes[verse|tiny]",
        "adding/mona/selection[verse|tiny]",
    ]

    # A commit that leaves the rows as they are: read again, and nothing below is made.
    files = {"README.md": b"Verses.\n", "data/train.jsonl": lines(rows)}
    hub.push("datasets", "orchard/verse", files)
    ((_, _, key),) = elsewhere.call(watch, project)[0]
    assert key != requests[0][2]
    elsewhere.call(refresh, project, "verse")
    assert elsewhere.made(project) == []


def test_one_silent_repository_does_not_hide_another(
    project: Project, hub: FakeHub, elsewhere: Elsewhere
) -> None:
    hub.push("datasets", "orchard/left", {"train.jsonl": lines(sums(0, 20))})
    hub.push("datasets", "orchard/right", {"train.jsonl": lines(verses(0, 20))})
    from_hub(project, "fruit", repo="orchard/left")
    from_hub(project, "verse", repo="orchard/right")
    assert len(elsewhere.made(project, "--upto", "raw_pool")) == 2
    hub.repos.pop(("datasets", "orchard/left"))
    hub.push("datasets", "orchard/right", {"train.jsonl": lines(verses(0, 25))})
    requests, _ = elsewhere.call(watch, project)
    assert [request[0] for request in requests] == ["verse"]
    elsewhere.call(refresh, project, "verse")
    requests, why = elsewhere.call(watch, project)
    assert requests == []
    assert why is not None
    assert "datasets.fruit.sources.fruit: hub dataset orchard/left: no such repository" in why


def test_a_hub_that_comes_back_is_asked_again(
    project: Project, hub: FakeHub, elsewhere: Elsewhere
) -> None:
    hub.push("datasets", "orchard/late", {"train.jsonl": lines(verses(0, 20))})
    from_hub(project, "verse", repo="orchard/late")
    words = ["run", "--dataset", "verse", "--upto", "raw_pool"]
    hub.fail(2)
    done = elsewhere.mona(project, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trying again in") == 2
    before = texts(project, "verse")

    hub.push("datasets", "orchard/late", {"train.jsonl": lines(verses(50, 20))})
    project.settings["datasets"]["verse"] |= {"max_bad_rows": 0.5, "max_loss": 1}
    hub.gone = True
    done = elsewhere.mona(project, *words)
    hub.gone = False
    assert done.returncode == 1
    assert "datasets.verse.sources.verse: hub dataset orchard/late: the hub does" in one_line(done)
    assert done.stderr.count("trying again in") == 3
    assert texts(project, "verse") == before
    assert "raw_pool[verse]" in elsewhere.made(project, *words[1:])
    assert texts(project, "verse") == {row["output"] for row in verses(50, 20)}


def _missing_repository(hub: FakeHub) -> dict[str, Any]:
    return {"repo": "orchard/nowhere"}


def _missing_revision(hub: FakeHub) -> dict[str, Any]:
    return {"repo": "orchard/there", "revision": "v9"}


def _missing_split(hub: FakeHub) -> dict[str, Any]:
    return {"repo": "orchard/there", "split": "test"}


def _missing_subset(hub: FakeHub) -> dict[str, Any]:
    return {"repo": "orchard/there", "subset": "small"}


def _gated(hub: FakeHub) -> dict[str, Any]:
    hub.push("datasets", "orchard/gated", {"train.jsonl": lines(sums(0, 9))}, gated=True)
    return {"repo": "orchard/gated"}


def _no_data(hub: FakeHub) -> dict[str, Any]:
    hub.push("datasets", "orchard/empty", {"README.md": b"Nothing yet.\n"})
    return {"repo": "orchard/empty"}


def _broken_file(hub: FakeHub) -> dict[str, Any]:
    hub.push("datasets", "orchard/broken", {"train.jsonl": lines(sums(0, 9)) + b'{"half": \n'})
    return {"repo": "orchard/broken"}


def _script(hub: FakeHub) -> dict[str, Any]:
    hub.push("datasets", "orchard/scripted", {"scripted.py": b"raise SystemExit\n"})
    return {"repo": "orchard/scripted"}


def _no_name(hub: FakeHub) -> dict[str, Any]:
    return {"repo": "no such name"}


_REFUSALS: list[tuple[Callable[[FakeHub], dict[str, Any]], str]] = [
    (_missing_repository, "orchard/nowhere: no such repository"),
    (_missing_revision, "orchard/there@v9: no such revision"),
    (_missing_split, "orchard/there: Bad split: test"),
    (_missing_subset, "orchard/there: BuilderConfig 'small' not found"),
    (_gated, "orchard/gated: Dataset 'orchard/gated' is a gated dataset on the Hub"),
    (_no_data, "orchard/empty: "),
    (_broken_file, "orchard/broken: "),
    (_script, "orchard/scripted: Dataset scripts are no longer supported"),
    (_no_name, "no such name: Repo id must"),
]


def test_what_the_hub_has_not_is_one_line_and_final(
    project: Project, hub: FakeHub, elsewhere: Elsewhere
) -> None:
    hub.push("datasets", "orchard/there", {"train.jsonl": lines(sums(0, 9))})
    project.settings["datasets"].pop("fruit")
    project.settings["models"]["tiny"]["sae"]["train"]["datasets"] = ["verse"]
    elsewhere.made(project, "--upto", "raw_pool")
    before = texts(project, "verse")
    for ask, says in _REFUSALS:
        from_hub(project, "verse", **ask(hub))
        done = elsewhere.mona(project, "run", "--upto", "raw_pool")
        assert f"datasets.verse.sources.verse: hub dataset {says}" in one_line(done)
        assert done.returncode == 2, says
        assert "trying again" not in done.stderr
        assert texts(project, "verse") == before


def test_the_token_opens_a_gated_repository(
    project: Project, hub: FakeHub, elsewhere: Elsewhere
) -> None:
    hub.push("datasets", "orchard/gated", {"train.jsonl": lines(verses(0, 9))}, gated=True)
    from_hub(project, "verse", repo="orchard/gated")
    elsewhere.call(_environment, "HF_TOKEN", hub.token)
    try:
        assert "raw_pool[verse]" in elsewhere.made(project, "--upto", "raw_pool")
    finally:
        elsewhere.call(_environment, "HF_TOKEN", "")
    for file in project.root.rglob("*"):
        assert not file.is_file() or hub.token.encode() not in file.read_bytes()


def _environment(name: str, value: str) -> None:
    os.environ[name] = value


def pushed_model(hub: FakeHub, name: str, folder: Path, **extra: bytes) -> str:
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return hub.push("models", name, {**files, **extra})


def test_a_model_and_a_target_come_from_the_hub_at_the_commits_recorded(
    project: Project, hub: FakeHub, elsewhere: Elsewhere, tiny_llama: Path
) -> None:
    commit = pushed_model(hub, "orchard/tiny", tiny_llama, **{"weights.bin": b"pickled"})
    language_model = {"repo": "orchard/tiny"}
    project.settings["models"]["tiny"]["language_model"] = language_model
    questions = [
        {"question": f"{i} figs and {i} plums?", "answer": f"Both.\n#### {2 * i}"}
        for i in range(60)
    ]
    card = {
        "config_name": "main",
        "data_files": [{"split": s, "path": f"main/{s}.jsonl"} for s in ("train", "test")],
    }
    files = {
        "main/train.jsonl": lines(questions[:6]),
        "main/test.jsonl": lines(questions[6:]),
        "README.md": f"---\n{yaml.safe_dump({'configs': [card]})}---\n".encode(),
    }
    asked = hub.push("datasets", "orchard/asked", files)
    parts = {
        part: {"hub": {"repo": "orchard/asked", "subset": "main", "split": split}}
        for part, split in (("examples", "train"), ("test", "test"))
    }
    project.settings["targets"] = {"asking": {"reader": "gsm8k", **parts}}
    hub.take_requests()
    made = elsewhere.made(project, "--dataset", "fruit")
    assert "asking/mona/selection[fruit|tiny]" in made
    assert not [line for line in hub.take_requests() if "weights.bin" in line]

    assert record(project, "sae[tiny]").about["revisions"] == {
        "language_model": f"orchard/tiny@{commit}"
    }
    read = record(project, "asking/examples").about["revisions"]
    assert read == {"examples": asked, "test": asked}
    rows = project.store.read("test_rows.asking").to_pylist()
    assert len(rows) == 54
    assert {row["file"] for row in rows} == {f"orchard/asked@{asked}"}
    assert list((project.root / "store" / "scratch").glob("split.*")) == []

    # The branch moves on: what was made with the old commit stays of one piece.
    pushed_model(hub, "orchard/tiny", tiny_llama, **{"config.json": b"{}"})
    project.write_rows("fruit", project.rows("fruit")[2:])
    assert elsewhere.made(project, "--dataset", "fruit") == [
        "raw_pool[fruit]",
        "activations[fruit|tiny]",
        "sae_codes[fruit|tiny]",
        "asking/mona/selection[fruit|tiny]",
    ]
    assert not [line for line in hub.take_requests() if "/orchard/tiny" in line]

    # A target whose questions move is read again, and what is chosen for it follows.
    assert elsewhere.call(watch, project)[0] == []
    files["main/train.jsonl"] = lines(questions[1:6])
    moved = hub.push("datasets", "orchard/asked", files)
    ((partition, keys, _),) = elsewhere.call(watch, project)[0]
    assert (partition, keys) == (None, [examples("asking")])
    elsewhere.call(refresh, project, None, examples("asking"))
    read = record(project, "asking/examples").about["revisions"]
    assert read == {"examples": moved, "test": moved}
    assert elsewhere.call(watch, project)[0] == []
    assert elsewhere.made(project, "--dataset", "fruit") == [
        "asking/prototype[tiny]",
        "asking/mona/selection[fruit|tiny]",
    ]

    # A named revision is another entry, and the hub's own word for it.
    language_model["revision"] = "v9"
    done = elsewhere.mona(project, "run", "--dataset", "fruit")
    assert done.returncode == 2
    says = "models.tiny.language_model: hub repo orchard/tiny@v9: no such revision"
    assert says in one_line(done)
    language_model["revision"] = "v1"
    hub.repos["models", "orchard/tiny"].branches["v1"] = commit
    hub.fail(2)
    done = elsewhere.mona(project, "run", "--dataset", "fruit", "--upto", "sae")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trying again in") == 2


def test_an_sae_brings_only_its_own_layer(
    project: Project, hub: FakeHub, elsewhere: Elsewhere
) -> None:
    import torch
    from safetensors.torch import save

    torch.manual_seed(0)
    tensors = {
        "encoder.weight": torch.randn(64, 32),
        "encoder.bias": torch.zeros(64),
        "W_dec": torch.randn(64, 32),
        "b_dec": torch.zeros(32),
    }
    layer = {
        "sae.safetensors": save(tensors),
        "cfg.json": b'{"d_in": 32, "num_latents": 64, "k": 4}',
    }
    files = {f"layers.{i}/{name}": body for i in (3, 4) for name, body in layer.items()}
    commit = hub.push("models", "orchard/sae", files)
    given = {"repo": "orchard/sae", "subfolder": "layers.4", "format": "eleuther"}
    project.settings["models"]["tiny"]["sae"] = {
        "load": given,
        "quality_datasets": ["fruit"],
        "quality_tokens": 200,
        "max_fvu": 1e9,
    }
    hub.take_requests()
    assert "sae[tiny]" in elsewhere.made(project, "--dataset", "fruit", "--upto", "sae")
    fetched = [line for line in hub.take_requests() if "/resolve/" in line]
    assert fetched
    assert not [line for line in fetched if "layers.4" not in line]
    assert record(project, "sae[tiny]").about["revisions"] == {"sae": f"orchard/sae@{commit}"}


def test_a_release_that_does_not_answer_is_asked_again(
    project: Project, hub: FakeHub, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    from sae_lens import SAE

    saved = tmp_path / "saved"
    SAE.from_dict({"architecture": "topk", "d_in": 32, "d_sae": 64, "k": 4}).save_model(saved)
    files = {f"blocks.4/{file.name}": file.read_bytes() for file in saved.iterdir()}
    hub.push("models", "orchard/lens", files)
    project.settings["models"]["tiny"]["sae"] = {
        "load": {"release": "orchard/lens", "sae_id": "blocks.4"},
        "quality_datasets": ["fruit"],
        "quality_tokens": 200,
        "max_fvu": 1e9,
    }
    command = ["run", "--dataset", "fruit", "--upto", "sae"]
    hub.gone = True
    done = elsewhere.mona(project, *command)
    hub.gone = False
    assert done.returncode == 1
    assert done.stderr.count("trying again in") == 3
    assert "sae-lens release orchard/lens, blocks.4: the hub does not answer" in one_line(done)
    done = elsewhere.mona(project, *command)
    assert done.returncode == 0, done.stderr


def test_a_target_row_that_cannot_be_read_names_its_repository(
    project: Project, hub: FakeHub, elsewhere: Elsewhere
) -> None:
    hub.push("datasets", "orchard/odd", {"train.jsonl": lines([{"ask": "Figs?"}])})
    files = {"hub": {"repo": "orchard/odd"}}
    project.settings["targets"]["adding"] = {"reader": "gsm8k", "examples": files}
    done = elsewhere.mona(project, "run", "--upto", "examples")
    assert done.returncode == 2
    says = "targets.adding.examples: hub dataset orchard/odd: odd.jsonl row 1: no field 'question'"
    assert says in one_line(done)


def test_every_asset_with_a_way_out_is_retried(measured: Project) -> None:
    measured.settings["recipes"]["whole"] = {"selector": "all"}
    made = [
        asset
        for asset in build_definitions(measured.config).assets or ()
        if isinstance(asset, dg.AssetsDefinition) and asset.is_executable
    ]
    outward = [asset for asset in made if asset.required_resource_keys & {"shelf", "sources"}]
    assert len(outward) > 8
    for asset in outward:
        assert hasattr(asset.op.compute_fn.decorated_fn, "__wrapped__"), asset.keys


def test_a_named_task_of_the_harness_reads_its_data_from_the_hub(
    project: Project, hub: FakeHub, elsewhere: Elsewhere
) -> None:
    pytest.importorskip("lm_eval")
    stars = [
        {
            "question": f"Which of these stands {i} from the sun?",
            "subject": "astronomy",
            "choices": ["a pear", "a fig", "a plum", "a quince"],
            "answer": i % 4,
        }
        for i in range(8)
    ]
    files = {f"astronomy/{split}.jsonl": lines(stars) for split in ("test", "dev")}
    card = {
        "config_name": "astronomy",
        "data_files": [{"split": s, "path": f"astronomy/{s}.jsonl"} for s in ("test", "dev")],
    }
    readme = f"---\n{yaml.safe_dump({'configs': [card]})}---\n".encode()
    target = project.settings["targets"]["adding"]
    target.pop("test")
    target["evaluation"] = {"task": "mmlu_astronomy", "shots": 1, "rows": 6, "chat": False}
    project.settings["recipes"] = {"base": {"selector": "none"}}
    done = elsewhere.mona(project, "run", "--dataset", "fruit")
    assert done.returncode == 2
    assert "mmlu_astronomy" in one_line(done)
    assert "cais/mmlu" in one_line(done)

    commit = hub.push("datasets", "cais/mmlu", {**files, "README.md": readme})
    hub.gone = True
    done = elsewhere.mona(project, "run", "--dataset", "fruit")
    hub.gone = False
    assert done.returncode == 1
    assert "the hub does not answer" in one_line(done)
    made = elsewhere.made(project, "--dataset", "fruit")
    assert made == ["adding/base/evaluation[fruit|tiny]", "adding/leaderboard[fruit|tiny]"]
    rows = project.store.read("evaluation.adding.base.fruit.tiny").to_pylist()
    assert {row["subtask"] for row in rows} == {"mmlu_astronomy"}
    assert {row["metric"] for row in rows} == {"acc"}
    assert len(rows) == 6
    measured = record(project, "adding/base/evaluation[fruit|tiny]")
    assert measured.about["task data"] == {"cais/mmlu": commit}
    assert elsewhere.made(project, "--dataset", "fruit") == []
