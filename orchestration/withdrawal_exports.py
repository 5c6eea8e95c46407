"""The exports of a withdrawal: its rows taken out of files that are as they were written, what a
cut-short writing left removed, and all else named for a person. Nothing here may keep a
withdrawal from its end.
"""

from __future__ import annotations

from pathlib import Path

from mona.errors import WorkError
from mona.exports import held, without
from mona.files import file_digest
from mona.publishing import unfinished
from orchestration.config import Config
from orchestration.withdrawal_report import Report
from resources.exports import ExportFile, Exports
from resources.withdrawals import Withdrawal


def clean_exports(config: Config, withdrawal: Withdrawal, report: Report) -> None:
    """Takes the rows out of exports that are as written; others are for a person."""
    exports = Exports(config.home)
    noted, unreadable = exports.all()
    report.by_hand += unreadable
    for export in noted:
        ids = set(withdrawal.samples.get(export.dataset, [])) & set(export.sample_ids)
        # Every file, also after one that is left to a person.
        clean = [_clean_export(Path(p), f, ids, report) for p, f in export.files.items() if ids]
        if ids and all(clean):
            exports.settle(export, [key for key in export.sample_ids if key not in ids])


def _clean_export(path: Path, file: ExportFile, ids: set[str], report: Report) -> bool:
    """Whether nothing of the samples is left in a file of an export."""
    try:
        if file.sha256 is None:
            # The writing was cut short: what it had written lies beside the file's place.
            unfinished(path).unlink(missing_ok=True)
            if not path.exists():
                return True
        if file.kind == "settings":
            return True
        if not path.is_file():
            report.by_hand.append(f"export, no longer there: {path}")
            return False
        if file.sha256 in (None, file_digest(path)):
            taken = without(path, file.kind, ids)
            if taken:
                report.exports[str(path)] = report.exports.get(str(path), 0) + taken
        elif held(path, file.kind, ids):
            report.by_hand.append(f"export, changed since it was written: {path}")
            return False
    except (WorkError, OSError) as error:
        # Nothing may keep a withdrawal from its end: a person has to look at this one.
        report.by_hand.append(f"export, look for its rows yourself: {error}")
        return False
    return True
