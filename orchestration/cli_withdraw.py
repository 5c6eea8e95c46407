"""`mona withdraw`: samples or a source leave for good, as licences and privacy law ask."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mona.errors import RequestError
from orchestration.config import Config, load_config
from orchestration.terminal import config_option, json_option

if TYPE_CHECKING:
    from orchestration.withdrawal import Preview
    from resources.records import Record
    from resources.withdrawals import Withdrawal


@click.command()
@click.option("--sample", "samples", multiple=True, metavar="ID", help="may be repeated")
@click.option("--source", metavar="NAME", help="a source, or one of its labels NAME/folder")
@click.option("--file", "listed", type=click.Path(), metavar="LIST", help="a sample id a line")
@click.option("--reason", required=True, help="kept in the audit: no personal data")
@click.option("--dry-run", is_flag=True, help="show what would go, change nothing")
@click.option("--yes", is_flag=True, help="do not ask")
@config_option
@json_option
def withdraw(
    samples: tuple[str, ...],
    source: str | None,
    listed: str | None,
    reason: str,
    dry_run: bool,
    yes: bool,
    config_path: str | None,
    as_json: bool,
) -> None:
    """Remove samples or a source for good: pools, codes, caches, history, exports.

    Shows what would go and what would be tainted, and asks. Ids, digests, scores and the reason
    stay. What was made with the samples is tainted until the next mona run. A withdrawal that was
    cut short is completed by the same command or the next run.
    """
    config = load_config(config_path)
    if sum((bool(samples), source is not None, listed is not None)) != 1:
        raise RequestError("pass one of --sample, --source and --file")
    if not reason.strip():
        raise RequestError("--reason: is empty")
    from orchestration.definitions import build_resources
    from orchestration.taints import readable
    from orchestration.withdrawal import of_samples, of_source, preview

    resources = build_resources(config)
    records, store = resources["records"], resources["store"]
    asked = (
        partial(of_source, source, config.datasets)
        if source is not None
        else partial(of_samples, _read_ids(Path(listed)) if listed is not None else samples)
    )
    find = partial(asked, reason, records.ledger, store)
    if dry_run or not yes:
        found = preview(find(readable(records)), config, records, store)
        if dry_run and as_json:
            click.echo(json.dumps(asdict(found)))
            return
        _show_preview(found)
        if dry_run:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise RequestError("withdraw: nobody can be asked here; --yes withdraws, nothing was")
        click.confirm("withdraw for good?", abort=True, err=True)
    _carry_out(config, resources, find, as_json)


def _show_preview(found: Preview) -> None:
    """On stderr: stdout is the report's."""
    say = partial(click.echo, err=True)
    say(f"withdrawal {found.withdrawal} takes {found.samples} samples" + found.standing)
    for table, rows in found.tables.items():
        say(f"  {rows:,} rows of table {table}")
    for path, rows in found.exports.items():
        say(f"  {rows:,} rows of export {path}")
    for asset in found.tainted:
        say(f"  taints {asset}")
    if found.past:
        say(f"  taints {found.past} past records of subsets, models and evaluations")


def _carry_out(
    config: Config,
    resources: dict[str, Any],
    find: Callable[[Mapping[str, Record]], Withdrawal],
    as_json: bool,
) -> None:
    from orchestration.definitions import build_definitions
    from orchestration.home import open_instance
    from orchestration.run import observe
    from orchestration.withdrawal import carry_out, finish_pending

    records, store = resources["records"], resources["store"]
    definitions = build_definitions(config)
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    with open_instance(config) as instance:
        report = carry_out(find, config, definitions, instance, records, store)
        finish_pending(config, definitions, instance, records, store)
        observe(config, instance, resources)
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    rewritten = sum(report.tables.values())
    click.echo(
        f"withdrawal {report.withdrawal}: {report.samples} samples; "
        f"{rewritten} versions of {len(report.tables)} tables, {len(report.exports)} exports and "
        f"{report.history} entries of Dagster's history written anew"
    )
    for asset in report.tainted:
        click.echo(f"tainted: {asset}")
    for left in report.by_hand:
        click.echo(f"left to you: {left}")


def _read_ids(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: can't be read ({error})") from error
    return [line.strip() for line in lines if line.strip()]
