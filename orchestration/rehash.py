"""Source files read again: whether their bytes are still what the pools' records say.

`mona status` trusts a file's size, times and inode; this does not.
"""

from __future__ import annotations

from collections.abc import Iterator

from assets.keys import RAW_POOL, label
from mona.errors import MonaError
from orchestration.config import Config
from orchestration.verify import Finding
from resources.records import Records
from resources.sources import Sources


def changed_sources(config: Config, records: Records) -> Iterator[Finding]:
    """A finding for each local file and wheel of a pool that was made, whose bytes are others
    now, or that is gone."""
    sources = Sources(home=str(config.home), rehash=True)
    for dataset, spec in config.datasets.items():
        asset = label(RAW_POOL, dataset)
        made = records.current(asset)
        if made is None:
            continue
        recorded: dict[str, str] = records.get(made).about["sources"]
        for source in spec.sources:
            prefix = f"{source.name}/"
            if source.hub is not None or not any(name.startswith(prefix) for name in recorded):
                continue
            try:
                files = sources.files(source, f"datasets.{dataset}.sources.{source.name}")
                now = {f"{prefix}{file.name}": sources.digest(file) for file in files}
            except MonaError as error:
                yield Finding(asset, made, f"source {source.name}", str(error))
                continue
            if source.wheel is not None:
                continue
            for name in sorted({name for name in recorded if name.startswith(prefix)} | set(now)):
                if now.get(name) != recorded.get(name):
                    problem = (
                        "is gone"
                        if name not in now
                        else "is new: mona run reads it"
                        if name not in recorded
                        else f"has the digest {now[name]}, the record {recorded[name]}"
                    )
                    yield Finding(asset, made, f"source {name}", problem)
