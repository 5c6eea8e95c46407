"""`mona run`, `status`, `check` and `leaderboard`: what is to be made, what stands, what was
found wrong."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from mona.errors import Faults, RequestError
from mona.names import nearest
from orchestration.config import Config, load_config
from orchestration.terminal import (
    choice_options,
    config_option,
    json_option,
    print_table,
    printable,
)
from resources.asset_partition import AssetPartition

if TYPE_CHECKING:
    from orchestration.check import Scope
    from orchestration.closing import Board
    from orchestration.estimate import Plan
    from orchestration.planner import Choice, Standing

_SUBSET_COLUMNS = ["subset", "dataset", "model", "samples", "best", "last", "table"]
_BAR_SWITCH = "TQDM_DISABLE"  # tqdm reads it as a default, ours and the libraries' alike


@click.command()
@config_option
@choice_options
@click.option("--upto", default="leaderboard", help="the last asset to make", show_default=True)
@click.option("--dry-run", is_flag=True, help="print the plan and its costs, do nothing")
@click.option("--retrain-sae", is_flag=True, help="train the SAEs anew even if they are fresh")
@click.option("--quiet", "-q", is_flag=True, help="no progress, only what was made")
@click.option("--verbose", "-v", is_flag=True, help="Dagster's own lines too")
@json_option
def run(
    config_path: str | None,
    datasets: tuple[str, ...],
    models: tuple[str, ...],
    targets: tuple[str, ...],
    recipes: tuple[str, ...],
    upto: str,
    dry_run: bool,
    retrain_sae: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Check the chosen part, then bring it up to date, skipping what is fresh."""
    if quiet and verbose:
        raise RequestError("--quiet and --verbose: pass one of them")
    if quiet:
        os.environ[_BAR_SWITCH] = "1"
    if verbose:
        from orchestration.logs import show_lines

        show_lines()
    config = load_config(config_path)
    from orchestration.check import refuse_faults
    from orchestration.definitions import build_definitions, build_resources
    from orchestration.home import open_instance
    from orchestration.planner import Choice, Standing
    from orchestration.run import bring_up_to_date, observe

    choice = Choice(datasets, models, targets, recipes, upto).checked(config)
    definitions, resources = build_definitions(config), build_resources(config)
    started = time.monotonic()
    with open_instance(config) as instance:
        observe(config, instance, resources)
        standing = Standing(instance, definitions.resolve_asset_graph(), config)
        refuse_faults(_due(config, resources, choice, standing))
        if dry_run:
            from orchestration.estimate import estimate

            _show_plan(estimate(config, definitions, instance, resources, choice), as_json)
            return
        done = bring_up_to_date(
            config,
            definitions,
            instance,
            choice,
            retrain_sae=retrain_sae,
            announce=lambda text: None if quiet else click.echo(f"making {text}", err=True),
        )
        _show_end(config, instance, resources, done, time.monotonic() - started, as_json)


def _due(config: Config, resources: dict[str, Any], choice: Choice, standing: Standing) -> Scope:
    """The part of a choice that is not fresh: what is made needs no look at its files."""
    from assets.keys import RAW_POOL, examples
    from orchestration.check import Scope
    from orchestration.planner import steps

    whole = Scope.of(config, resources["sources"], resources["shelf"])
    due = [
        (key, step.partition)
        for step in steps(config, choice)
        for key in step.keys
        if standing.state(key, step.partition).status != "fresh"
    ]
    made = [AssetPartition.of(key.path, partition) for key, partition in due]
    used, followed = {of.model for of in made}, {of.recipe for of in made}
    return replace(
        whole,
        datasets=tuple(d for d in config.datasets if (RAW_POOL, d) in due),
        models=tuple(m for m in config.models if m in used),
        targets=tuple(t for t in config.targets if (examples(t), None) in due),
        recipes=tuple(r for r in choice.recipes if r in followed),
    )


def _show_plan(plan: Plan, as_json: bool) -> None:
    from orchestration.estimate import notes, shown_rows

    if as_json:
        click.echo(json.dumps(asdict(plan)))
        return
    if not plan.steps:
        click.echo("nothing is planned: all of it is fresh")
        return
    columns = ["asset", "status", "samples", "tokens", "disk", "memory", "time", "why"]
    rows = shown_rows(plan)
    if rows:
        print_table(rows, columns, "", shorten="why")
    for line in notes(plan):
        click.echo(printable(line))


def _show_end(
    config: Config,
    instance: Any,
    resources: dict[str, Any],
    done: Any,
    seconds: float,
    as_json: bool,
) -> None:
    from orchestration.closing import (
        boards,
        encoding_accounts,
        made_subsets,
        next_commands,
        pool_accounts,
    )

    records = resources["records"]
    pools = pool_accounts(records, done.made) + encoding_accounts(records, done.made)
    made = made_subsets(config, resources["records"], resources["store"])
    found = boards(config, instance)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "made": done.made,
                    "fresh": done.fresh,
                    "pools": pools,
                    "subsets": made,
                    "leaderboards": [asdict(board) for board in found],
                }
            )
        )
        return
    minutes, rest = divmod(round(seconds), 60)
    click.echo(
        f"{len(done.made)} made, {len(done.fresh)} were fresh"
        + (f", {minutes} min {rest} s" if done.made else "")
    )
    if not done.made:
        return
    for line in pools:
        click.echo(printable(line))
    if made:
        click.echo(f"\nsubsets, under {config.store_root}:")
        print_table(made, _SUBSET_COLUMNS, "")
    _print_boards(found)
    click.echo("\nnext:")
    for command in next_commands(config, made, bool(found)):
        click.echo(f"  {command}")


def _print_boards(found: list[Board]) -> None:
    for board in found:
        for metric, rows in board.tables.items():
            where = f"{board.target} from {board.dataset} by {board.model}"
            click.echo(f"\n{where}, {metric}:")
            print_table(rows, list(rows[0]) if rows else [], "nothing was measured")


@click.command()
@click.argument("target", required=False)
@config_option
@json_option
def leaderboard(target: str | None, config_path: str | None, as_json: bool) -> None:
    """Every recipe's figures side by side, of TARGET or of every target that is measured."""
    config = load_config(config_path)
    if target is not None and target not in config.targets:
        near = nearest(target, config.targets)
        raise RequestError(f"no target is called '{target}' in {config.path}{near}")
    from orchestration.closing import boards
    from orchestration.home import open_instance

    with open_instance(config) as instance:
        found = boards(config, instance, target)
    if as_json:
        click.echo(json.dumps([asdict(board) for board in found]))
    elif found:
        _print_boards(found)
    else:
        click.echo("no leaderboard was made: a target needs `evaluation`, then mona run")


@click.command()
@config_option
@choice_options
@json_option
def status(
    config_path: str | None,
    datasets: tuple[str, ...],
    models: tuple[str, ...],
    targets: tuple[str, ...],
    recipes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Each partition: fresh, stale (and why), missing, waiting for its upstream, failed (a check,
    with its figure), blocked by one that failed, tainted by a withdrawal until it is made again,
    or retired: configured no more."""
    config = load_config(config_path)
    from orchestration.definitions import build_definitions, build_resources
    from orchestration.home import open_instance
    from orchestration.planner import Choice, Standing, label, states, steps
    from orchestration.reclaim import retired
    from orchestration.run import observe
    from orchestration.taints import taints

    choice = Choice(datasets, models, targets, recipes).checked(config)
    definitions = build_definitions(config)
    resources = build_resources(config)
    with open_instance(config) as instance:
        observe(config, instance, resources)
        standing = Standing(instance, definitions.resolve_asset_graph(), config)
        rows = [
            {"asset": label(state.key, state.partition), "status": state.status, "why": state.why}
            for state in states(standing, steps(config, choice))
        ]
    for withdrawal in resources["records"].ledger.unfinished():
        click.echo(f"withdrawal {withdrawal} is not complete: mona run completes it", err=True)
    tainted = taints(resources["records"])
    for row in rows:
        if row["asset"] in tainted:
            row |= {
                "status": "tainted",
                "why": f"{tainted[row['asset']]} ({row['status']}: {row['why']})",
            }
    rows += [
        {
            "asset": asset,
            "status": "retired",
            "why": "no longer configured; "
            + ("kept for the audit" if kept else "mona gc reclaims it"),
        }
        for asset, kept in retired(config, resources["records"]).items()
    ]
    if as_json:
        click.echo(json.dumps(rows))
    else:
        print_table(rows, ["asset", "status", "why"], "nothing is configured")


@click.command()
@config_option
@json_option
def check(config_path: str | None, as_json: bool) -> None:
    """Find everything that can be known to be wrong without work or downloads."""
    found: list[str] = []
    fetch: list[str] = []
    config = None
    try:
        config = load_config(config_path)
        from orchestration.check import Scope, faults, to_fetch
        from orchestration.definitions import build_definitions, build_resources

        resources = build_resources(config)
        scope = Scope.of(config, resources["sources"], resources["shelf"])
        found = faults(scope)
        fetch = to_fetch(scope)
        if not found:
            build_definitions(config).resolve_asset_graph()
    except Faults as error:
        found = list(error.faults)
    if as_json:
        click.echo(json.dumps({"faults": found, "fetch": fetch}))
    if found:
        raise Faults(found)
    if config is not None and not as_json:
        click.echo(
            f"{config.path}: {len(config.datasets)} datasets, {len(config.models)} models, "
            f"{len(config.targets)} targets, {len(config.recipes)} recipes; no fault found"
        )
        if fetch:
            click.echo(printable("not looked at, a run fetches it: " + "; ".join(fetch)))
