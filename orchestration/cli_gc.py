"""`mona gc`: shows what nothing refers to any more, and removes it when asked to."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict

import click

from orchestration.config import load_config
from orchestration.terminal import config_option, json_option, print_table


@click.command()
@config_option
@click.option("--yes", is_flag=True, help="remove what is shown")
@json_option
def gc(config_path: str | None, yes: bool, as_json: bool) -> None:
    """Show the tables, old versions, SAEs and left-over work that nothing refers to; with --yes
    remove them.

    What a subset, a fine-tune or an evaluation stands on stays, past ones too, and so do all
    records. What was made for names that are configured no more goes unless one of those
    stands on it.
    """
    config = load_config(config_path)
    from orchestration.definitions import build_definitions, build_resources
    from orchestration.home import open_instance
    from orchestration.planner import Standing
    from orchestration.reclaim import plan, reclaim
    from orchestration.run import observe

    resources = build_resources(config)
    records, store = resources["records"], resources["store"]
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    with open_instance(config) as instance:
        observe(config, instance, resources)
        standing = Standing(instance, build_definitions(config).resolve_asset_graph(), config)
        found = (
            reclaim(standing, instance, records, store) if yes else plan(standing, records, store)
        )
    total = sum(item.bytes for item in found.items)
    if as_json:
        click.echo(json.dumps({**asdict(found), "bytes": total, "removed": yes}))
        return
    for asset, kept in found.retired.items():
        click.echo(f"retired: {asset}" + (", kept for the audit" if kept else ""))
    rows = [{**asdict(item), "size": f"{item.bytes / 1e6:,.1f} MB"} for item in found.items]
    print_table(rows, ["kind", "name", "size", "why"], "nothing to reclaim")
    if found.unfinished is not None:
        click.echo(
            f"{found.unfinished} is not fresh: what its step may go on from was left out",
            err=True,
        )
    if rows:
        done = "removed" if yes else "--yes removes them:"
        click.echo(f"{done} {len(rows)} items, {total / 1e6:,.1f} MB")
