"""`mona explain`: which latents made a sample's score, and what each of them means."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from orchestration.config import load_config
from orchestration.terminal import asset_partition, config_option, json_option, print_table

if TYPE_CHECKING:
    from mona.explanation import Context


@click.command()
@click.argument("selection")
@click.argument("sample_id")
@config_option
@click.option("--dataset", help="where there is more than one")
@click.option("--model", help="where there is more than one")
@click.option(
    "--limit", default=10, show_default=True, type=click.IntRange(1), help="latents to show"
)
@json_option
def explain(
    selection: str,
    sample_id: str,
    config_path: str | None,
    dataset: str | None,
    model: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """The latents that made SAMPLE_ID's score in TARGET/RECIPE, chosen or not, each with the
    tokens at which it is strongest: in the sample and in the pool. Runs the model on the few
    samples that are shown."""
    config = load_config(config_path)
    from orchestration.definitions import build_resources
    from orchestration.explain import explain as explained
    from resources.engine import progress_bar

    asset = asset_partition(config, "selection", selection, dataset, model)
    resources = build_resources(config)
    with progress_bar("reading what the latents mean", None, "samples") as advance:
        found = explained(
            resources["records"],
            resources["store"],
            resources["shelf"],
            config.models,
            asset,
            sample_id,
            limit,
            advance,
        )
    if as_json:
        click.echo(json.dumps(asdict(found), ensure_ascii=False))
        return
    standing = "not chosen" if found.rank is None else f"rank {found.rank}"
    click.echo(
        f"{sample_id} in {asset}: score {found.score:.4f}, {standing}; "
        f"{found.shared} latents shared with the prototype"
    )
    rows: list[dict[str, Any]] = [
        {
            "latent": latent.part.latent,
            "of the score": f"{latent.part.part / found.score:.1%}",
            "sample": f"{latent.part.sample:.3g}",
            "prototype": f"{latent.part.prototype:.3g}",
            "in the pool": f"{latent.use.active / found.pool_samples:.1%}",
            "in this sample": "" if latent.here is None else _marked(latent.here),
            "strongest in the pool": "\n".join(map(_marked, latent.means)),
        }
        for latent in found.latents
    ]
    columns = ["latent", "of the score", "sample", "prototype", "in the pool"]
    print_table(rows, [*columns, "in this sample", "strongest in the pool"], "nothing is shared")


def _marked(context: Context) -> str:
    text = f"{context.before}[{context.token}]{context.after}"
    return " ".join(text.split())
