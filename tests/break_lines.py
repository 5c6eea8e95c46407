"""Does the suite still notice? Breaks one line in each of a dozen rooms, in a copy of the project
in a temporary folder, and runs the tests that should fail by it:

    python -m tests.break_lines            # all of them, a few minutes
    python -m tests.break_lines tokens     # the rooms whose file names hold a word

Run by hand after the tests were made faster or moved. Exit 1 where a break was not noticed. The
tests are run unbroken first: one that fails anyway notices nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".git", ".venv", "data", "__pycache__", ".hypothesis", ".*_cache", "*.egg-info")


@dataclass(frozen=True)
class Break:
    """A text that stands once in a file, what it becomes, and the tests that should see it."""

    file: str
    right: str
    wrong: str
    tests: str


BREAKS = [
    Break(
        "mona/similarity.py",
        "float(prototypes.l1[column]) - above",
        "float(prototypes.l1[column])",
        "tests/mona/test_similarity.py",
    ),
    Break(
        "mona/selection.py",
        "values >= self._threshold",
        "values > self._threshold",
        "tests/mona/test_selection.py",
    ),
    Break(
        "mona/views.py",
        "total = size * (size + 1) / 2",
        "total = size * size / 2",
        "tests/mona/test_views.py",
    ),
    Break(
        "mona/sae.py",
        "values.clamp_(min=0).flatten()",
        "values.flatten()",
        "tests/mona/test_sae.py",
    ),
    Break(
        "mona/tokens.py",
        "counted[: self.policy.skip_first] = False",
        "counted[: self.policy.skip_first - 1] = False",
        "tests/mona/test_tokens.py",
    ),
    Break(
        "mona/pool.py", 'b"".join(sorted(digests))', 'b"".join(digests)', "tests/mona/test_pool.py"
    ),
    Break(
        "mona/containers.py",
        "    if isinstance(value, dict):\n        return RawRow(file, line, value)",
        "    if isinstance(value, dict | list):\n        return RawRow(file, line, value)",
        "tests/mona/test_containers.py",
    ),
    Break(
        "mona/decontamination.py",
        "inside = ends <= len(text.starts)",
        "inside = ends < len(text.starts)",
        "tests/mona/test_decontamination.py",
    ),
    Break(
        "mona/evaluation/intervals.py",
        "        paired=True,\n",
        "        paired=False,\n",
        "tests/mona/evaluation/test_intervals.py",
    ),
    Break(
        "resources/store.py",
        "in wanted[start : start + _IDS_PER_DELETE]",
        "in wanted[start + 1 : start + _IDS_PER_DELETE]",
        "tests/resources/test_store.py",
    ),
    Break(
        "resources/withdrawals.py",
        "frozenset(key for withdrawal in everything for key in withdrawal.ids)",
        "frozenset(key for withdrawal in everything[1:] for key in withdrawal.ids)",
        "tests/resources/test_withdrawals.py",
    ),
    Break(
        "resources/encodings.py",
        'if sample_id(text) != row["sample_id"]:',
        'if not sample_id(text) and row["sample_id"]:',
        "tests/resources/test_encodings.py",
    ),
    Break(
        "assets/retries.py",
        "context.retry_number + 1 >= tries",
        "context.retry_number >= tries",
        "tests/assets/test_retries.py",
    ),
    Break(
        "orchestration/planner.py",
        '    if depth >= 1 and chosen.upto != "examples":',
        '    if depth > 1 and chosen.upto != "examples":',
        "tests/orchestration/test_gc.py::test_an_sae_that_was_superseded_before_it_chose_goes",
    ),
    Break(
        "orchestration/config.py",
        "            if key in seen:\n",
        "            if key not in seen and None:\n",
        "tests/orchestration/test_config.py",
    ),
]


def passes(copy: Path, tests: list[str]) -> bool:
    """Whether the tests pass in the copy; what can't be collected does not."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    choice = ["-m", "not acceptance and not experiment"]
    done = subprocess.run(
        [*command, *choice, *tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main(words: list[str]) -> int:
    """Tries the breaks whose file holds one of the words; all without words."""
    chosen = [b for b in BREAKS if not words or any(word in b.file for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT, ".cache"))
        if (ROOT / ".cache").exists():
            (copy / ".cache").symlink_to(ROOT / ".cache")
        for tried in chosen:  # before the long part
            if (copy / tried.file).read_text(encoding="utf-8").count(tried.right) != 1:
                raise SystemExit(f"{tried.file}: does not hold once: {tried.right}")
        if not passes(copy, sorted({tried.tests for tried in chosen})):
            raise SystemExit("the tests fail before anything is broken")
        for tried in chosen:
            path = copy / tried.file
            whole = path.read_text(encoding="utf-8")
            path.write_text(whole.replace(tried.right, tried.wrong), encoding="utf-8")
            noticed = not passes(copy, [tried.tests])
            path.write_text(whole, encoding="utf-8")
            missed += not noticed
            print(f"{'noticed' if noticed else 'NOT NOTICED':12} {tried.file}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} breaks were noticed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
