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
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mona import method
from mona.device import resolve_device, resolve_dtype
from mona.errors import RequestError, WorkError
from mona.files import DataFile
from mona.fingerprint import fingerprint
from mona.hub import hub_answers, repository
from mona.publishing import write_whole
from mona.spec import (
    LanguageModel,
    ModelSpec,
    PretrainedSae,
    SystemTurns,
    Template,
    TokenPolicy,
)
from mona.tokens import RENDERING_VERSION
from resources.sources import Sources, local_files

if TYPE_CHECKING:
    from mona.encoder import Encoder
    from mona.sae import SparseAutoencoder

_MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model's entry as one step uses it, asked for once: the folder its weights lie in and
    their digest, and the fingerprint that names what its residual streams mean."""

    name: str
    spec: ModelSpec
    folder: Path
    weights: str
    encoder: str

    def codes(self, sae_digest: str) -> str:
        """Names what a code means: the encoder's fingerprint, SAE weights, K, pooling, and the
        method's version."""
        return fingerprint(
            encoder=self.encoder,
            sae=sae_digest,
            k=self.spec.k,
            pooling=self.spec.pooling,
            method=method.CODES,
        )


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
            "system": model.system,
            "rendering": RENDERING_VERSION,
            "streams": method.STREAMS,
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

    def folder_at_hand(self, name: str, given: LanguageModel) -> Path | None:
        """The same where it is on this machine and prepared, else None; downloads nothing."""
        if given.repo is not None:
            return self._cached_snapshot(given)
        if given.wheel is not None and not self.sources.has_wheel(given.wheel):
            return None
        if given.wheel is not None or str(given.path).endswith(".gguf"):
            files = (
                self.sources.wheel_files(given.wheel)
                if given.wheel is not None
                else local_files(str(given.path), f"models.{name}.language_model")
            )
            ggufs = [file for file in files if file.filename.endswith(".gguf")]
            if len(ggufs) == 1:
                out = Path(self.home) / "models" / self.sources.digest(ggufs[0])
                return out if out.is_dir() else None
        return self.folder(name, given)

    def _cached_snapshot(self, given: LanguageModel) -> Path | None:
        from huggingface_hub import snapshot_download

        assert given.repo is not None
        pin = self._pin(given.repo, given.revision)
        known = pin.read_text(encoding="ascii") if pin.exists() else given.revision
        try:
            return Path(snapshot_download(given.repo, revision=known, local_files_only=True))
        except (OSError, ValueError):  # not in the cache
            return None

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

    def resolve(self, name: str, model: ModelSpec) -> ResolvedModel:
        """A model's entry as a step uses it. The encoder's fingerprint names what a residual
        stream means: weights, tokenizer, template, layer, token policy, max length and dtype
        (DESIGN: codes with different fingerprints never meet)."""
        weights = self.weights_digest(name, model.language_model)
        encoder = fingerprint(weights=weights, **self._encoder_fields(model))
        folder = self.folder(name, model.language_model)
        return ResolvedModel(name, model, folder, weights, encoder)

    def encoder(self, model: ResolvedModel, views: Collection[str] = ()) -> Encoder:
        """The loaded encoder, with what the dense views need of it; the last one used stays in
        memory for the process."""
        return _load_encoder(*self._encoder_settings(model), mlp="mlp_topk" in views)

    def encoder_with_neighbours(self, model: ResolvedModel) -> Encoder:
        """An encoder that can also run the block past its layer, to compare layers."""
        return _load_encoder(*self._encoder_settings(model), blocks_after=1)

    def _encoder_settings(self, model: ResolvedModel) -> tuple[Any, ...]:
        spec = model.spec
        return (
            model.folder,
            spec.layer,
            self._dtype(spec),
            resolve_device(self.device),
            spec.template,
            spec.tokens,
            spec.max_length,
            spec.language_model.trust_remote_code,
            spec.system,
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

    def sae_path(self, name: str, digest: str) -> Path:
        """The folder of one of a model's SAEs."""
        return Path(self.home) / "sae" / name / digest

    def sae_figures(self, name: str, digest: str) -> dict[str, Any]:
        """What is kept beside one of a model's SAEs: quality, layer, origin. WorkError when it is
        not there. Imports no torch."""
        path = self.sae_path(name, digest) / "record.json"
        if not path.is_file():
            raise WorkError(f"{path}: the figures of the SAE are missing: materialise sae[{name}]")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def sae(self, name: str, digest: str) -> SparseAutoencoder:
        """One of a model's SAEs, on the device."""
        from mona.sae import SparseAutoencoder

        return SparseAutoencoder.load(self.sae_path(name, digest), resolve_device(self.device))

    def keep_sae(self, name: str, sae: SparseAutoencoder, figures: dict[str, Any]) -> str:
        """Saves an SAE with its figures and returns its digest. Which one is a model's current
        SAE is what its provenance record says; earlier ones stay, so that what was made with
        them can still be explained."""
        digest = sae.digest
        target = self.sae_path(name, digest)
        if not target.exists():
            sae.save(target)
        write_whole(target / "record.json", json.dumps({"digest": digest, **figures}, indent=1))
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
    system: SystemTurns,
    blocks_after: int = 0,
    mlp: bool = False,
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
        system=system,
        blocks_after=blocks_after,
        mlp=mlp,
    )
