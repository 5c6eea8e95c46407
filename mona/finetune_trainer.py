"""The training loop of `mona.finetune`: TRL's and PEFT's, with our labels and settings.

Belongs here: what is told to those libraries, the loss on a CPU, and what makes a checkpoint
whole. All of them are imported when a trainer is made.
"""

from __future__ import annotations

import inspect
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mona.errors import WorkError
from mona.spec import FinetuneSpec
from mona.tokens import Supervised

CHECKPOINT_PREFIX = "checkpoint-"  # the trainer's own
WHOLE_FILE = "whole"  # written into a checkpoint last
_IGNORED = -100  # the label of a token without loss
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def processes_of_this_job() -> int:
    """How many processes this job has, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def trusted(spec: FinetuneSpec) -> bool:
    """Whether the base may run its own code."""
    return spec.base is not None and spec.base.trust_remote_code


def training_arguments(
    spec: FinetuneSpec, scratch: Path, accumulation: int, device: str, dtype: str
) -> Any:
    """TRL's SFTConfig; `accumulation` micro batches make a process's share of a batch."""
    from trl import SFTConfig

    arguments = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=_SCHEDULES[spec.schedule],
        warmup_steps=spec.warmup_ratio,  # below 1 it is a ratio
        weight_decay=spec.weight_decay,
        max_length=spec.max_length,
        packing=spec.packing,
        gradient_checkpointing=spec.gradient_checkpointing,
        bf16=dtype == "bfloat16",
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" and processes_of_this_job() > 1 else None,
        dataloader_pin_memory=device != "cpu",
        seed=spec.seed,
        data_seed=spec.seed,
        save_steps=spec.checkpoint_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,
        # Packed rows hold no padding, but a padding token that also ends turns.
        include_num_input_tokens_seen="all" if spec.packing else "non_padding",
        report_to=[],
        disable_tqdm=True,
    )
    # One process takes one device: the trainer would spread over all it sees.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def last_whole_checkpoint(scratch: Path) -> Path | None:
    """The newest checkpoint that was written to its end; the others are removed."""
    whole = []
    for folder in scratch.glob(f"{CHECKPOINT_PREFIX}*"):
        if (folder / WHOLE_FILE).is_file():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX))


def make_trainer(
    rows: list[Supervised],
    base_folder: Path,
    spec: FinetuneSpec,
    arguments: Any,
    dtype: str,
    progress: Callable[[int], None],
) -> Any:
    """TRL's SFTTrainer over the rows, ready to train; it writes checkpoints into its output
    folder and tells `progress` of optimiser steps.

    Training raises WorkError at a loss that is not finite.
    """
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    datasets.disable_progress_bars()
    # Weights that are trained stay float32, or small updates would round away.
    frozen = spec.lora is not None
    model = AutoModelForCausalLM.from_pretrained(
        base_folder,
        dtype=getattr(torch, dtype) if frozen else torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=trusted(spec),
    )
    dataset = datasets.Dataset.from_dict(
        {
            "input_ids": [row.ids for row in rows],
            "labels": [
                [int(token) if learned else _IGNORED for token, learned in zip(*pair, strict=True)]
                for pair in ((row.ids, row.learned) for row in rows)
            ],
        }
    )
    trainer = _trainer_class(model, arguments)(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(
            base_folder, local_files_only=True, trust_remote_code=trusted(spec)
        ),
        peft_config=_lora(spec),
        callbacks=[_watch(progress, arguments.distributed_state.wait_for_everyone)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trainer_class(model: Any, arguments: Any) -> Any:
    """TRL's trainer; on a CPU with a loss that is computed at learned positions only.

    TRL's own does so on a GPU, in a fused kernel; elsewhere it multiplies every position with
    the output layer, which took a third of the time of SmolLM2-135M's training.
    """
    from torch.nn.functional import cross_entropy
    from trl import SFTTrainer

    if not arguments.use_cpu or "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return SFTTrainer

    class LearnedPositionsTrainer(SFTTrainer):
        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            labels = inputs.pop("labels")[:, 1:]
            kept = (labels != _IGNORED).any(dim=0).nonzero().flatten()
            logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits
            learned = labels[:, kept] != _IGNORED
            total = cross_entropy(
                logits[learned].float(), labels[:, kept][learned], reduction="sum"
            )
            # The count is of all processes, and gradients are averaged over them.
            return total * self.accelerator.num_processes / num_items_in_batch

    return LearnedPositionsTrainer


def _lora(spec: FinetuneSpec) -> Any:
    if spec.lora is None:
        return None
    from peft import LoraConfig

    settings: dict[str, Any] = {
        "r": spec.lora.rank,
        "lora_alpha": spec.lora.alpha,
        "lora_dropout": spec.lora.dropout,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**settings)


def _watch(progress: Callable[[int], None], wait_for_everyone: Callable[[], None]) -> Any:
    """Tells of progress, stops at a loss that is not finite, and marks whole checkpoints."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(1)

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            # Comes before the step's checkpoint is written.
            if not math.isfinite(given["logs"].get("loss", 0.0)):
                raise WorkError(
                    f"fine-tuning: the loss of step {state.global_step} is not finite; lower "
                    f"learning_rate = {args.learning_rate:g}"
                )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait_for_everyone()
            if not state.is_world_process_zero:
                return
            scratch = Path(args.output_dir)
            (scratch / f"{CHECKPOINT_PREFIX}{state.global_step}" / WHOLE_FILE).touch()
            for folder in scratch.glob(f"{CHECKPOINT_PREFIX}*"):
                if _step(folder) < state.global_step:
                    shutil.rmtree(folder)

    return Watch()
