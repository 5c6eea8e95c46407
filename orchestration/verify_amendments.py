"""Do the amendments of records follow from withdrawals? Each step of one must hang on the step
before, be named by the closed withdrawal that made it, and take out rows that the withdrawal
names and no others.

That the rows left are what they were is held by the seals, which `orchestration.verify` compares
with the store; a row that is gone can only be counted and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mona.errors import WorkError
from mona.pool import Withdrawn
from resources.records import Amendment, AmendmentStep, Record, Records, TableSeal
from resources.tables import kind_of
from resources.withdrawals import Withdrawal, Withdrawals

Problem = tuple[str, str, str]  # record, what, problem


class Ledger:
    """The withdrawals and what they were closed with, read once."""

    def __init__(self, ledger: Withdrawals) -> None:
        self.withdrawals = {found.name: found for found in ledger.all()}
        self.reports: dict[str, dict[str, Any] | None] = {}
        for name in self.withdrawals:
            self.reports[name] = ledger.report(name)

    def steps_of(self, name: str) -> Mapping[str, list[str]] | None:
        """Record -> digests of the steps that a withdrawal closed with; None of one that was
        closed before reports named them."""
        report = self.reports.get(name) or {}
        found = report.get("amendments")
        return found if isinstance(found, dict) else None


def amendment_problems(records: Records, known: Mapping[str, Record]) -> Iterator[Problem]:
    """What is wrong with amendments, and with the ledger they stand on; known: the records that
    can be read, by digest."""
    try:
        ledger = Ledger(records.ledger)
    except WorkError as error:
        yield "", "withdrawals", str(error)
        return
    amended = records.amended()
    for digest in amended:
        what = f"records/amended/{digest}.json"
        if digest not in records.digests():
            yield digest, what, "amends a record that is not here"
        elif digest in known:  # the others are findings already
            amendment = records.amendment(digest)
            assert amendment is not None
            for problem in _problems(digest, records.as_published(digest), amendment, ledger):
                yield digest, what, problem
    for name in ledger.withdrawals:
        for digest in (ledger.steps_of(name) or {}).keys() - set(amended):
            what = f"records/amended/{digest}.json"
            yield digest, what, f"is missing: withdrawal {name} amended the record"


def _problems(
    digest: str, published: Record, amendment: Amendment, ledger: Ledger
) -> Iterator[str]:
    for name in amendment.withdrawals:
        if name not in ledger.withdrawals:
            yield f"names withdrawal {name}, which the ledger does not have"
        elif ledger.reports[name] is None:
            yield f"withdrawal {name} is not complete: mona run completes it"
        elif not amendment.steps and ledger.steps_of(name) is not None:
            yield f"was not made by withdrawal {name}"
    if not amendment.steps:
        yield from _counted(published, amendment, ledger)
        return
    yield from _chain(digest, amendment, ledger)
    seals = dict(published.tables)
    for step in amendment.steps:
        withdrawal = ledger.withdrawals.get(step.withdrawal)
        before = seals.get(step.table)
        if before is None:
            yield f"names table {step.table}, which the record has not"
        elif withdrawal is not None:
            yield from _accounted(step, before, withdrawal)
        seals[step.table] = step.seal


def _chain(digest: str, amendment: Amendment, ledger: Ledger) -> Iterator[str]:
    """Each step hangs on the one before and is named by a closed withdrawal; their sum is what
    the amendment says."""
    previous = digest
    tables: dict[str, TableSeal] = {}
    removed: dict[str, str] = {}
    for step in amendment.steps:
        if step.previous != previous:
            yield f"its step by withdrawal {step.withdrawal} does not follow the one before"
        previous = step.digest
        tables[step.table] = step.seal
        removed |= step.removed
        named = (ledger.steps_of(step.withdrawal) or {}).get(digest, [])
        if ledger.reports.get(step.withdrawal) is not None and step.digest not in named:
            yield f"its step for {step.table} was not made by withdrawal {step.withdrawal}"
    by = sorted({step.withdrawal for step in amendment.steps})
    if (tables, removed, by) != (amendment.tables, amendment.removed, amendment.withdrawals):
        yield "says something else than its steps"
    made = {step.digest for step in amendment.steps}
    for name in ledger.withdrawals:
        if set((ledger.steps_of(name) or {}).get(digest, [])) - made:
            yield f"lacks a step by which withdrawal {name} amended the record"


def _accounted(step: AmendmentStep, before: TableSeal, withdrawal: Withdrawal) -> Iterator[str]:
    """The rows gone from a table are rows that the withdrawal names, and as many."""
    kind = kind_of(step.table)
    if kind is not None and kind.key == "source":
        covers = Withdrawn(sources=(withdrawal.source or "",)).covers
        strangers = [key for key in step.gone if not covers(key)]
    else:
        strangers = sorted(set(step.gone) - withdrawal.all_ids)
    if strangers:
        yield (
            f"takes {strangers[0]} out of {step.table}, which withdrawal {withdrawal.name} "
            "does not name"
        )
    missing = before.rows - step.seal.rows
    if missing != len(step.gone):
        yield f"{missing} rows are gone from {step.table}, it accounts for {len(step.gone)}"
    if kind is not None and kind.name == "pool" and sorted(step.removed) != step.gone:
        yield f"the row digests it keeps are not of the rows gone from {step.table}"


def _counted(published: Record, amendment: Amendment, ledger: Ledger) -> Iterator[str]:
    """Of an amendment without steps: no more rows are gone than its withdrawals name."""
    by = [ledger.withdrawals[n] for n in amendment.withdrawals if n in ledger.withdrawals]
    named = set().union(*(withdrawal.all_ids for withdrawal in by))
    strangers = sorted(set(amendment.removed) - named)
    if strangers:
        yield f"takes out {strangers[0]}, which none of its withdrawals names"
    for name, seal in amendment.tables.items():
        before = published.tables.get(name)
        if before is None:
            yield f"names table {name}, which the record has not"
            continue
        kind = kind_of(name)
        if kind is not None and kind.key == "source":
            continue  # rows without ids: nothing was kept of them to count by
        missing = before.rows - seal.rows
        most = len(named) if kind is not None and kind.rows == "go" else 0
        if not 0 <= missing <= most:
            yield f"{missing} rows are gone from {name}, more than its withdrawals name"
