"""Supervised fine-tuning of a language model on chosen samples, resumably.

Here are the job as a whole: what it trains on, what it goes on from, the folder it publishes,
one process or several. The loop is `mona.finetune_trainer`; reading a tuned model is
`mona.tuned`. Run as a script under `accelerate launch` this is one process of a job.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mona.checkpoints import (
    TOKENIZER_FILES,
    deciding_files,
    matching_files,
    model_digest,
    quiet_transformers,
    refuse_nan,
)
from mona.device import resolve_dtype
from mona.errors import RequestError, WorkError
from mona.finetune_trainer import (
    last_whole_checkpoint,
    make_trainer,
    processes_of_this_job,
    training_arguments,
    trusted,
)
from mona.fingerprint import fingerprint
from mona.publishing import published_folder
from mona.sample import Message, from_records, to_records
from mona.spec import FinetuneSpec, Spec, TokenPolicy
from mona.tokens import Renderer, SetAside, Supervised, template_faults
from mona.tuned import ADAPTER_CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOG_FILE = "training_log.json"
SETTINGS_FILE = "settings.json"
_LIBRARIES = ("accelerate", "peft", "torch", "transformers", "trl")


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a fine-tuning did; kept beside the weights as `training_log.json`.

    samples: those trained on; skipped: those without a token to learn within max_length;
    truncated: those of `samples` that were cut; set_aside: of those that the template can't render
    truly, how many for each reason; learned_tokens: tokens with loss in one pass
    over the samples; log: for each optimiser step its `step`, `loss` (mean over learned
    tokens), `learning_rate` and `tokens` passed until then, padding left out; seconds: of the
    process that finished the job, so without what it found done.
    """

    samples: int
    skipped: int
    truncated: int
    learned_tokens: int
    log: list[dict[str, float]]
    seconds: float
    set_aside: dict[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return len(self.log)

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [entry["loss"] for entry in self.log]

    @property
    def final_loss(self) -> float:
        """The loss of the last step."""
        return self.losses[-1]


def read_report(folder: Path) -> TrainingReport:
    """The report of a published fine-tuning. RequestError where `folder` holds none."""
    path = folder / LOG_FILE
    if not path.is_file():
        raise RequestError(f"{folder}: not a tuned model, it has no {LOG_FILE}")
    return TrainingReport(**json.loads(path.read_text(encoding="utf-8")))


def planned_steps(samples: int, spec: FinetuneSpec) -> int:
    """Optimiser steps over this many samples; with packing, an upper bound."""
    return math.ceil(spec.epochs * math.ceil(samples / spec.batch_size))


def train(
    samples: Sequence[Sequence[Message]],
    base_folder: Path,
    spec: FinetuneSpec,
    out: Path,
    scratch: Path,
    *,
    device: str,
    progress: Callable[[int], None],
) -> TrainingReport:
    """Fine-tune the model in `base_folder` on the samples and publish it as the folder `out`.

    `out` holds an adapter (adapter_model.safetensors, adapter_config.json) or, without
    `spec.lora`, a whole model in the base's own dtype; with the tokenizer's files and
    `training_log.json`. It appears complete or not at all; where it exists it stays and its
    report is returned. `spec.base` is not looked up: it only names the base in the adapter's
    configuration and may allow the base's own code.

    `scratch` belongs to this job: after an interruption the same call goes on from the last
    whole checkpoint there and gives the weights an undisturbed run gives; a checkpoint of other
    inputs, settings or library versions is discarded. It is removed on success. `progress` is
    told of optimiser steps newly done. `device` is resolved ('cpu' or 'cuda'). With packing, a
    batch counts packed rows of up to `max_length` tokens.

    The same inputs on the same machine give the same weights, to the bit.

    Raises RequestError where the libraries are missing, the base folder or its template is
    unusable, nothing would teach the model to stop, or the batch cannot be divided over the
    processes; WorkError where no sample has a token to learn,
    memory runs out, or a loss or weight is not finite.
    """
    if (out / LOG_FILE).is_file():
        return read_report(out)
    if out.exists():
        raise RequestError(f"{out}: exists and is not a tuned model")
    accumulation = _accumulation(spec, processes_of_this_job())
    _require_libraries()
    deciding_files(base_folder)

    import torch

    from mona.bfloat16 import bfloat16_products

    started = time.monotonic()
    quiet_transformers()
    rows, skipped, set_aside = _rows(samples, base_folder, spec)
    dtype = resolve_dtype(spec.dtype, device)
    with _deterministic(), warnings.catch_warnings():
        # The libraries tell each other, not the user, what will be renamed.
        warnings.simplefilter("ignore", FutureWarning)
        arguments = training_arguments(spec, scratch, accumulation, device, dtype)
        settings = _settings(rows, base_folder, spec, device, dtype)
        # Only the main process clears the scratch folder; the others then find it in order.
        with arguments.main_process_first(local=False):
            checkpoint = _last_checkpoint(scratch, settings)
        trainer = make_trainer(rows, base_folder, spec, arguments, dtype, progress)
        resumed = None if checkpoint is None else str(checkpoint)
        try:
            with bfloat16_products(device, getattr(torch, dtype)):
                trainer.train(resume_from_checkpoint=resumed)
        except torch.OutOfMemoryError as error:
            raise WorkError(
                f"fine-tuning: out of memory on {device}; lower micro_batch_size or max_length, "
                "or set gradient_checkpointing"
            ) from error
    refuse_nan(trainer.model, "fine-tuning")
    report = TrainingReport(
        samples=len(rows),
        skipped=skipped,
        truncated=sum(row.length > len(row.ids) for row in rows),
        learned_tokens=sum(int(row.learned.sum()) for row in rows),
        log=[
            {
                "step": entry["step"],
                "loss": entry["loss"],
                "learning_rate": entry["learning_rate"],
                "tokens": entry["num_input_tokens_seen"],
            }
            for entry in trainer.state.log_history
            if "loss" in entry
        ],
        seconds=time.monotonic() - started,
        set_aside=set_aside,
    )
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        _publish(model, base_folder, spec, out, report)
        shutil.rmtree(scratch)
    # The loop's objects refer to each other: a long-lived process would keep the model.
    del trainer
    gc.collect()
    return report


def _accumulation(spec: FinetuneSpec, processes: int) -> int:
    """Micro batches a process takes for one optimiser step."""
    together = spec.micro_batch_size * processes
    if spec.batch_size % together:
        raise RequestError(
            f"fine-tuning: batch_size = {spec.batch_size} is no multiple of micro_batch_size x "
            f"processes = {spec.micro_batch_size} x {processes}"
        )
    return spec.batch_size // together


def _require_libraries() -> None:
    from importlib.util import find_spec

    for name in ("trl", "peft", "accelerate", "datasets"):
        if find_spec(name) is None:
            raise RequestError(f"fine-tuning needs {name}: pip install 'mona-select[finetune]'")


def _rows(
    samples: Sequence[Sequence[Message]], base_folder: Path, spec: FinetuneSpec
) -> tuple[list[Supervised], int, dict[str, int]]:
    """The samples with something to learn, tokenised, how many have nothing, and how many are
    set aside for each reason."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        base_folder, local_files_only=True, trust_remote_code=trusted(spec)
    )
    for fault in template_faults(tokenizer, spec.template, tuned=True):
        raise RequestError(f"fine-tuning: {fault}")
    renderer = Renderer(tokenizer, spec.template, TokenPolicy(), spec.max_length, spec.system)
    made = renderer.supervised(samples)
    set_aside = Counter(row.reason for row in made if isinstance(row, SetAside))
    rows = [row for row in made if isinstance(row, Supervised) and row.learned.any()]
    if not rows:
        said = "".join(f"; {times} set aside: {why}" for why, times in set_aside.most_common(1))
        raise WorkError(
            f"fine-tuning: none of {len(samples)} samples has an assistant token within "
            f"max_length = {spec.max_length}{said}"
        )
    return rows, len(samples) - len(rows) - set_aside.total(), dict(set_aside)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels for the block; cuBLAS asks for the variable too.

    torch would also fill all memory that it is about to write, for programs that read what they
    did not write; ours do not, and filling takes time.
    """
    import torch

    memory: Any = torch.utils.deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]


def _settings(
    rows: list[Supervised], base_folder: Path, spec: FinetuneSpec, device: str, dtype: str
) -> str:
    """What a checkpoint's continuation depends on, as one name."""
    data = hashlib.sha256()
    for row in rows:
        data.update(len(row.ids).to_bytes(4, "little"))
        data.update(row.ids.tobytes())
        data.update(row.learned.tobytes())
    return fingerprint(
        rows=data.hexdigest(),
        base=model_digest(base_folder),
        spec=spec.model_dump(mode="json", exclude={"base", "auto", "checkpoint_steps"}),
        device=device,
        dtype=dtype,
        processes=processes_of_this_job(),
        libraries=[version(name) for name in _LIBRARIES],
    )


def _last_checkpoint(scratch: Path, settings: str) -> Path | None:
    """The newest whole checkpoint made under these settings; whatever else is there goes."""
    path = scratch / SETTINGS_FILE
    if not path.is_file() or path.read_text(encoding="utf-8") != settings:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        path.write_text(settings, encoding="utf-8")
    return last_whole_checkpoint(scratch)


def _publish(
    model: PreTrainedModel,
    base_folder: Path,
    spec: FinetuneSpec,
    out: Path,
    report: TrainingReport,
) -> None:
    with published_folder(out) as partial:
        if spec.lora is not None:
            model.save_pretrained(partial, save_embedding_layers=False)
            (partial / "README.md").unlink(missing_ok=True)
            _settle_adapter_config(partial / ADAPTER_CONFIG, base_folder, spec)
            kept: tuple[str, ...] = TOKENIZER_FILES
        else:
            model.to(_stored_dtype(base_folder)).save_pretrained(partial)
            # The trainer edits the configuration in memory; only the weights have changed.
            kept = (*TOKENIZER_FILES, "config.json", "generation_config.json", "*.py")
        for path in matching_files(base_folder, kept):
            shutil.copyfile(path, partial / path.name)
        text = json.dumps(asdict(report), indent=1) + "\n"
        (partial / LOG_FILE).write_text(text, encoding="utf-8")


def _settle_adapter_config(path: Path, base_folder: Path, spec: FinetuneSpec) -> None:
    """Take out what differs between machines and runs: the base's path, the order of a set."""
    config = json.loads(path.read_text(encoding="utf-8"))
    repo = spec.base.repo if spec.base is not None else None
    config["base_model_name_or_path"] = repo or base_folder.name
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _stored_dtype(base_folder: Path) -> Any:
    """The dtype of the first weight in the base's files."""
    from safetensors import safe_open

    first = matching_files(base_folder, ("*.safetensors",))[0]
    with safe_open(first, "pt") as stored:
        return stored.get_tensor(next(iter(stored.keys()))).dtype


class FinetuneJob(Spec):
    """The arguments of `train` as a file can hold them. `samples` is what `write_samples`
    wrote; `device` is resolved."""

    samples: Path
    base: Path
    spec: FinetuneSpec
    out: Path
    scratch: Path
    device: str


def write_samples(samples: Sequence[Sequence[Message]], path: Path) -> None:
    """One conversation a line, as JSON."""
    with path.open("w", encoding="utf-8") as stream:
        for messages in samples:
            stream.write(json.dumps(to_records(messages), ensure_ascii=False) + "\n")


def launch(job: FinetuneJob, processes: int, progress: Callable[[int], None]) -> TrainingReport:
    """`train` in this process, or in `processes` of them, one for each device.

    The effective batch stays `batch_size`. Several processes are started by `accelerate launch`
    on this machine; what they print to stderr is kept as `launch.log` beside the scratch folder
    until the job succeeds. Raises as `train`, and WorkError where a process dies.
    """
    if processes == 1:
        return _run(job, progress)
    _accumulation(job.spec, processes)
    _require_libraries()
    job.scratch.parent.mkdir(parents=True, exist_ok=True)
    beside = job.scratch.with_name(f"{job.scratch.name}.job")
    beside.mkdir(exist_ok=True)
    path, log = beside / "job.json", beside / "launch.log"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={processes}"]
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command += ["--main_process_port=0"]
    command += ["--cpu"] if job.device == "cpu" else ["--multi_gpu"]
    command += ["-m", "mona.finetune", str(path)]
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            _follow(process, progress)
        finally:
            process.terminate()
    if process.returncode != 0:
        raise WorkError(f"fine-tuning: a process ended with {process.returncode}; see {log}")
    shutil.rmtree(beside)
    return read_report(job.out)


def _follow(process: subprocess.Popen[str], progress: Callable[[int], None]) -> None:
    """Read the main process's lines: steps done, or the error it ends with."""
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        if "steps" in said:
            progress(said["steps"])
        elif "request" in said:
            raise RequestError(said["request"])
        elif "work" in said:
            raise WorkError(said["work"])
    process.wait()


def _run(job: FinetuneJob, progress: Callable[[int], None]) -> TrainingReport:
    with job.samples.open(encoding="utf-8") as stream:
        samples = [from_records(json.loads(line)) for line in stream]
    return train(
        samples, job.base, job.spec, job.out, job.scratch, device=job.device, progress=progress
    )


def main(path: Path) -> None:
    """One process of a job; the main one reports on stdout, a JSON object a line."""
    job = FinetuneJob.model_validate_json(path.read_text(encoding="utf-8"))
    first = os.environ.get("RANK", "0") == "0"

    def say(**said: Any) -> None:
        if first:
            print(json.dumps(said), flush=True)

    try:
        _run(job, lambda steps: say(steps=steps))
    except RequestError as error:
        say(request=str(error))
        raise
    except WorkError as error:
        say(work=str(error))
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
