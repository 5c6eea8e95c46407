"""Language models and SAEs as local folders and, when work needs them, in memory.

Which weights an entry means (of a hub's, at which commit), the fingerprints that name what its
codes mean, and the one loaded encoder of this process. The arithmetic is `mona.encoder` and
`mona.sae`.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mona.device import resolve_device, resolve_dtype
from mona.errors import RequestError
from mona.files import DataFile, write_whole
from mona.fingerprint import fingerprint
from mona.hub import hub_answers, repository
from mona.spec import LanguageModel, ModelSpec, PretrainedSae, Template, TokenPolicy
from resources.sources import Sources, local_files

if TYPE_CHECKING:
    from mona.encoder import Encoder
    from mona.sae import SparseAutoencoder

_MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


class Models(dg.ConfigurableResource):
    """Models under `home`; `device` decides the automatic dtype."""

    home: str
    device: str = "auto"

    @property
    def sources(self) -> Sources:
        """Where files and wheels come from."""
        return Sources(home=self.home)

    def identity(self, given: LanguageModel, where: str) -> Any:
        """What names the weights an entry asks for, without loading or downloading them."""
        if given.path is None:
            return given.model_dump(mode="json", exclude={"path"})
        return [[file.name, self.sources.digest(file)] for file in local_files(given.path, where)]

    def entry_versions(self, name: str, model: ModelSpec) -> dict[str, str]:
        """The versions of the parts of a model's entry: weights, encoder, sae, codes.

        An edit moves only the part that reads the edited field.
        """
        identity = self.identity(model.language_model, f"models.{name}.language_model")
        sae_files = None
        if model.sae.load is not None and model.sae.load.path is not None:
            files = local_files(model.sae.load.path, f"models.{name}.sae.load.path")
            sae_files = [[file.name, self.sources.digest(file)] for file in files]
        sae_fields = model.sae.model_dump(mode="json", exclude={"max_fvu"})
        if model.sae.load is not None:
            sae_fields["load"].pop("path")
        return {
            "weights": fingerprint(identity=identity),
            "encoder": fingerprint(identity=identity, **self._encoder_fields(model)),
            "sae": fingerprint(**sae_fields, files=sae_files),
            "codes": fingerprint(k=model.k, pooling=model.pooling),
        }

    def _encoder_fields(self, model: ModelSpec) -> dict[str, Any]:
        return {
            "layer": model.layer,
            "dtype": self._dtype(model),
            "template": model.template,
            "max_length": model.max_length,
            "tokens": model.tokens.model_dump(mode="json"),
        }

    def _dtype(self, model: ModelSpec) -> str:
        """The dtype that is computed in. What `auto` meant where the home was first used stays:
        another machine over the same home must not encode every pool anew unasked."""
        here = resolve_dtype(model.dtype, resolve_device(self.device))
        if model.dtype != "auto":
            return here
        noted = Path(self.home) / "auto_dtype"
        if not noted.exists():
            noted.parent.mkdir(parents=True, exist_ok=True)
            write_whole(noted, here)
        first = noted.read_text(encoding="ascii").strip()
        if first != here:
            _say_once(
                f"dtype: auto is {first}, as where {self.home} was first used; here it would "
                f"be {here}: name it in the model's entry to encode anew"
            )
        return first

    def folder(self, name: str, given: LanguageModel) -> Path:
        """A local folder with config, safetensors and tokenizer; prepared once."""
        where = f"models.{name}.language_model"
        if given.repo is not None:
            code = ("*.py",) if given.trust_remote_code else ()
            return self._snapshot(given.repo, given.revision, (*_MODEL_FILES, *code), where)
        if given.wheel is not None:
            files = self.sources.wheel_files(given.wheel)
        else:
            assert given.path is not None
            files = local_files(given.path, where)
        ggufs = [file for file in files if file.filename.endswith(".gguf")]
        if given.path is not None and not ggufs:
            path = Path(given.path).expanduser()
            if not path.is_dir():
                raise RequestError(f"{where}: {path} is neither a folder nor a GGUF file")
            return path
        if len(ggufs) != 1:
            raise RequestError(f"{where}: expected one GGUF file, found {len(ggufs)}")
        return self._prepared_gguf(ggufs[0])

    def _prepared_gguf(self, file: DataFile) -> Path:
        out = Path(self.home) / "models" / self.sources.digest(file)
        if not out.exists():
            from mona.checkpoints import prepare_gguf

            scratch = Path(self.home) / "scratch"
            scratch.mkdir(parents=True, exist_ok=True)
            gguf = file.path
            if file.member is not None:
                gguf = scratch / file.filename
                with file.open() as packed, gguf.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
            prepare_gguf(gguf, out)
            if file.member is not None:
                gguf.unlink()
        return out

    def _snapshot(
        self, repo: str, revision: str | None, patterns: tuple[str, ...], where: str
    ) -> Path:
        from huggingface_hub import snapshot_download

        # A branch that moves on must not change the model between two steps of one pipeline, or
        # encode every pool anew unasked: what it meant when it was first used here stays.
        pin = self._pin(repo, revision)
        known = pin.read_text(encoding="ascii") if pin.exists() else revision
        with hub_answers(repository(where, "repo", repo, revision)):
            found = Path(snapshot_download(repo, revision=known, allow_patterns=list(patterns)))
        if not pin.exists():
            pin.parent.mkdir(parents=True, exist_ok=True)
            write_whole(pin, found.name)
        return found

    def _pin(self, repo: str, revision: str | None) -> Path:
        """The file that says which commit a revision meant when it was first used."""
        return Path(self.home) / "revisions" / fingerprint(repo=repo, revision=revision)

    def revisions(self, model: ModelSpec) -> dict[str, str]:
        """REPO@COMMIT of what a model's entry takes from a hub, once it was fetched."""
        given = {"language_model": model.language_model, "sae": model.sae.load}
        return {part: said for part, origin in given.items() if (said := self.revision(origin))}

    def revision(self, given: LanguageModel | PretrainedSae | None) -> str | None:
        """REPO@COMMIT of what was fetched from a hub; None for what comes from elsewhere."""
        if given is None or given.repo is None:
            return None
        commit = self._pin(given.repo, given.revision).read_text(encoding="ascii")
        return f"{given.repo}@{commit}"

    def weights_digest(self, name: str, given: LanguageModel) -> str:
        """SHA-256 over the files of the prepared folder that decide results."""
        from mona.checkpoints import deciding_files

        folder = self.folder(name, given)
        files = deciding_files(folder)
        return fingerprint(files=[[f.name, self.sources.digest(DataFile(f))] for f in files])

    def encoder_fingerprint(self, name: str, model: ModelSpec) -> str:
        """Names what a residual stream means: weights, tokenizer, template, layer, token
        policy, max length and dtype (DESIGN: codes with different fingerprints never meet)."""
        return fingerprint(
            weights=self.weights_digest(name, model.language_model), **self._encoder_fields(model)
        )

    def codes_fingerprint(self, name: str, model: ModelSpec, sae_digest: str) -> str:
        """Names what a code means: the encoder's fingerprint, SAE weights, K and pooling."""
        return fingerprint(
            encoder=self.encoder_fingerprint(name, model),
            sae=sae_digest,
            k=model.k,
            pooling=model.pooling,
        )

    def encoder(self, name: str, model: ModelSpec) -> Encoder:
        """The loaded encoder; the last one used stays in memory for the process."""
        return _load_encoder(*self._encoder_settings(name, model))

    def encoder_with_neighbours(self, name: str, model: ModelSpec) -> Encoder:
        """An encoder that can also run the block past its layer, to compare layers."""
        return _load_encoder(*self._encoder_settings(name, model), blocks_after=1)

    def _encoder_settings(self, name: str, model: ModelSpec) -> tuple[Any, ...]:
        return (
            self.folder(name, model.language_model),
            model.layer,
            self._dtype(model),
            resolve_device(self.device),
            model.template,
            model.tokens,
            model.max_length,
            model.language_model.trust_remote_code,
        )

    def tokenizer(self, name: str, model: ModelSpec) -> Any:
        """The model's tokenizer alone, without weights."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            self.folder(name, model.language_model),
            trust_remote_code=model.language_model.trust_remote_code,
        )

    def sae_folder(self, given: PretrainedSae, where: str) -> Path | None:
        """The local folder of a pretrained SAE, its subfolder not entered yet; None for a
        sae-lens release."""
        if given.repo is not None:
            inside = f"{given.subfolder}/" if given.subfolder is not None else ""
            # Repositories hold an SAE of many gigabytes for every layer.
            patterns = (f"{inside}*.safetensors", f"{inside}*.json")
            return self._snapshot(given.repo, given.revision, patterns, where)
        if given.path is None:
            return None
        folder = Path(given.path).expanduser()
        if not folder.is_dir():
            raise RequestError(f"{where}: no folder at {folder}")
        return folder

    def current_record(self, name: str) -> dict[str, Any]:
        """The record of a model's current SAE: digest, quality, origin. RequestError when the
        model has none yet. Imports no torch."""
        pointer = Path(self.home) / "sae" / name / "current"
        if not pointer.exists():
            raise RequestError(f"model '{name}' has no SAE yet: materialise sae first")
        folder = pointer.parent / pointer.read_text(encoding="ascii")
        record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        return record

    def sae_path(self, name: str, digest: str) -> Path:
        """The folder of one of a model's SAEs."""
        return Path(self.home) / "sae" / name / digest

    def current_sae(self, name: str) -> tuple[SparseAutoencoder, str]:
        """A model's current SAE, on the device, and its digest."""
        from mona.sae import SparseAutoencoder

        digest = str(self.current_record(name)["digest"])
        folder = self.sae_path(name, digest)
        return SparseAutoencoder.load(folder, resolve_device(self.device)), digest

    def publish_sae(self, name: str, sae: SparseAutoencoder, record: dict[str, Any]) -> str:
        """Saves an SAE with its record, makes it the model's current one, returns its digest.

        Earlier ones stay: what was made with them can still be explained.
        """
        digest = sae.digest
        target = self.sae_path(name, digest)
        if not target.exists():
            sae.save(target)
        write_whole(target / "record.json", json.dumps({"digest": digest, **record}, indent=1))
        write_whole(target.parent / "current", digest)
        return digest


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@functools.lru_cache(maxsize=1)
def _load_encoder(
    folder: Path,
    layer: int,
    dtype: str,
    device: str,
    template: Template,
    policy: TokenPolicy,
    max_length: int,
    trust_remote_code: bool,
    blocks_after: int = 0,
) -> Encoder:
    from mona.encoder import Encoder

    return Encoder.load(
        folder,
        layer=layer,
        dtype=dtype,
        device=device,
        template=template,
        policy=policy,
        max_length=max_length,
        trust_remote_code=trust_remote_code,
        blocks_after=blocks_after,
    )
