"""Fine-tuning: what carries loss, that it learns, repeats to the bit, resumes, and publishes
whole folders only."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mona import finetune
from mona.checkpoints import model_digest
from mona.errors import RequestError, WorkError
from mona.finetune import FinetuneJob, TrainingReport, launch, read_report, train, write_samples
from mona.sample import Message
from mona.spec import FinetuneSpec, Lora
from mona.tuned import tuned_digest

REPOSITORY = Path(finetune.__file__).resolve().parent.parent
SPEC = FinetuneSpec(
    lora=Lora(rank=4, alpha=8, dropout=0.1),
    epochs=3,
    learning_rate=1e-2,
    batch_size=4,
    micro_batch_size=2,
    max_length=64,
    dtype="float32",
    checkpoint_steps=1,
)


def _chat(question: str, answer: str) -> list[Message]:
    return [Message("user", question), Message("assistant", answer)]


SAMPLES = [_chat(f"Where is bird {i}?", "In tree " + "x" * i) for i in range(9)]


def _train(base: Path, folder: Path, spec: FinetuneSpec = SPEC, **changes: Any) -> TrainingReport:
    told = changes.pop("progress", lambda steps: None)
    samples = changes.pop("samples", SAMPLES)
    return train(
        samples, base, spec, folder / "out", folder / "scratch", device="cpu", progress=told
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on a tiny model mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    _train(tiny_llama, folder)
    return folder / "out"


def test_what_is_published(tiny_llama: Path, undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    assert names == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "training_log.json",
    }
    assert [path.name for path in undisturbed.parent.iterdir()] == ["out"]  # no scratch left
    config = json.loads((undisturbed / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_llama.name
    projections = ["down", "gate", "k", "o", "q", "up", "v"]
    assert config["target_modules"] == [f"{name}_proj" for name in projections]
    assert (undisturbed / "tokenizer.json").read_bytes() == (
        tiny_llama / "tokenizer.json"
    ).read_bytes()


def test_the_report_says_what_happened(undisturbed: Path) -> None:
    report = read_report(undisturbed)
    rendered = [
        f"<|start|>system\nBe brief.<|stop|>\n<|start|>user\n{question.content}<|stop|>\n"
        f"<|start|>assistant\n{answer.content}<|stop|>\n"
        for question, answer in SAMPLES
    ]
    lengths = [len(text.replace("<|start|>", "1").replace("<|stop|>", "1")) for text in rendered]
    cut = sum(length > SPEC.max_length for length in lengths)
    assert (report.samples, report.skipped, report.truncated) == (9, 0, cut)
    assert 0 < cut < 9
    assert report.steps == finetune.planned_steps(9, SPEC) == 9
    assert report.final_loss == report.losses[-1] < report.losses[0]
    assert [entry["step"] for entry in report.log] == list(range(1, 10))
    rates = [entry["learning_rate"] for entry in report.log]
    assert rates[1] == max(rates) == pytest.approx(SPEC.learning_rate)  # after one of warm-up
    assert rates[-1] < rates[-2] < rates[-3]


def test_the_same_inputs_give_the_same_weights(
    tiny_llama: Path, undisturbed: Path, tmp_path: Path
) -> None:
    report = _train(tiny_llama, tmp_path)
    assert tuned_digest(tmp_path / "out") == tuned_digest(undisturbed)
    assert report.log == read_report(undisturbed).log
    _train(tiny_llama, tmp_path / "other", SPEC.model_copy(update={"seed": 1, "epochs": 1}))
    assert tuned_digest(tmp_path / "other" / "out") != tuned_digest(undisturbed)


KILLED = """
import sys, time
from pathlib import Path
from mona.finetune import FinetuneJob, launch

done = 0

def progress(steps):
    global done
    done += steps
    if done == 5:
        print("five", flush=True)
        time.sleep(600)

launch(FinetuneJob.model_validate_json(Path(sys.argv[1]).read_text()), 1, progress)
"""


def test_a_killed_run_goes_on_to_the_same_weights(
    tiny_llama: Path, undisturbed: Path, tmp_path: Path
) -> None:
    job = _job(tiny_llama, tmp_path)
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json())
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == "five\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert not job.out.exists()
    # A newer checkpoint whose writing was cut short: it has no mark.
    half = job.scratch / "checkpoint-8"
    half.mkdir()
    (half / "adapter_model.safetensors").touch()
    told: list[int] = []
    launch(job, 1, told.append)
    assert tuned_digest(job.out) == tuned_digest(undisturbed)
    assert read_report(job.out).log == read_report(undisturbed).log
    assert told == [4, 1, 1, 1, 1, 1]


class _StopError(Exception):
    pass


def _stopping_after(steps: int) -> Callable[[int], None]:
    done = 0

    def progress(new: int) -> None:
        nonlocal done
        done += new
        if done >= steps:
            raise _StopError

    return progress


def test_a_stopped_run_starts_at_its_last_checkpoint_and_only_under_the_same_settings(
    tiny_llama: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(_StopError):
        _train(tiny_llama, tmp_path, progress=_stopping_after(5))
    assert [path.name for path in (tmp_path / "scratch").glob("checkpoint-*")] == ["checkpoint-4"]
    told: list[int] = []
    _train(tiny_llama, tmp_path, progress=told.append)
    assert told == [4, 1, 1, 1, 1, 1]
    assert tuned_digest(tmp_path / "out") == tuned_digest(undisturbed)

    with pytest.raises(_StopError):
        _train(tiny_llama, tmp_path / "b", progress=_stopping_after(2))
    told = []
    changed = SPEC.model_copy(update={"seed": 3, "epochs": 1})
    _train(tiny_llama, tmp_path / "b", changed, progress=told.append)
    assert told[0] == 0


def test_a_run_stopped_while_publishing_leaves_nothing_that_looks_done(
    tiny_llama: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise _StopError

    with monkeypatch.context() as patched:
        patched.setattr(finetune, "_settle_adapter_config", fail)
        with pytest.raises(_StopError):
            _train(tiny_llama, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    told: list[int] = []
    _train(tiny_llama, tmp_path, progress=told.append)
    assert told == [9]  # nothing is trained again
    assert tuned_digest(tmp_path / "out") == tuned_digest(undisturbed)


def test_what_is_published_already_stays(tiny_llama: Path, undisturbed: Path) -> None:
    before = (undisturbed / "training_log.json").stat().st_mtime_ns
    assert _train(tiny_llama, undisturbed.parent) == read_report(undisturbed)
    assert (undisturbed / "training_log.json").stat().st_mtime_ns == before


def test_a_folder_that_is_something_else_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RequestError, match="not a tuned model"):
        _train(tiny_llama, tmp_path)


def _reference_loss(base: Path, samples: list[list[Message]]) -> float:
    """Cross entropy of what follows each assistant header, one sample at a time."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    losses = []
    for messages in samples:
        question, answer = (message.content for message in messages)
        head = f"<|start|>system\nBe brief.<|stop|>\n<|start|>user\n{question}<|stop|>\n"
        prompt = tokenizer(head + "<|start|>assistant\n", add_special_tokens=False)["input_ids"]
        learned = tokenizer(answer + "<|stop|>", add_special_tokens=False)["input_ids"]
        learned = learned[: SPEC.max_length - len(prompt)]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + learned])).logits[0, len(prompt) - 1 : -1]
        losses += torch.nn.functional.cross_entropy(
            logits, torch.tensor(learned), reduction="none"
        ).tolist()
    return sum(losses) / len(losses)


def test_the_first_loss_is_the_cross_entropy_of_the_learned_tokens(
    tiny_llama: Path, tmp_path: Path
) -> None:
    # Lengths differ, so that a mean of micro batches' means would not do.
    short = [_chat("Hm?", text) for text in ("No.", "Yes, yes.", "A", "Why not? Indeed.")]
    spec = SPEC.model_copy(
        update={"epochs": 1, "max_length": 80, "lora": Lora(rank=2, dropout=0.0)}
    )
    report = _train(tiny_llama, tmp_path, spec, samples=short)
    assert report.losses == [pytest.approx(_reference_loss(tiny_llama, short), rel=1e-5)]
    assert report.learned_tokens == sum(len(chat[1].content) + 1 for chat in short)
    tokens = report.log[0]["tokens"]
    packed = spec.model_copy(update={"packing": True, "max_length": 400})
    report = _train(tiny_llama, tmp_path / "packed", packed, samples=short)
    # All four share one row: neither attention nor labels cross from one to the next.
    assert report.losses == [pytest.approx(_reference_loss(tiny_llama, short), rel=1e-5)]
    assert report.log[0]["tokens"] == tokens > report.learned_tokens


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_a_repeated_sample_is_learned(tiny_llama: Path, tmp_path: Path, lora: Lora | None) -> None:
    spec = FinetuneSpec(
        lora=lora,
        epochs=12,
        learning_rate=3e-2 if lora else 3e-3,
        schedule="constant",
        batch_size=2,
        micro_batch_size=1,
        max_length=90,
        gradient_checkpointing=True,
        dtype="bfloat16",
    )
    report = _train(tiny_llama, tmp_path, spec, samples=[_chat("Who?", "An owl.")] * 2)
    assert report.final_loss < 0.6 * report.losses[0]
    assert report.log[-1]["learning_rate"] == spec.learning_rate


def test_a_whole_model_is_published_in_the_bases_form(tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(base)
    whole = SPEC.model_copy(update={"lora": None, "epochs": 1, "dtype": "bfloat16"})
    _train(base, tmp_path, whole)
    out = tmp_path / "out"
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert not (out / "adapter_config.json").exists()
    tuned = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert tuned.dtype == torch.bfloat16
    assert model_digest(out) == tuned_digest(out) != model_digest(base)
    text = "".join(path.read_text() for path in out.glob("*.json"))
    assert str(tmp_path) not in text


def test_samples_with_nothing_left_to_learn_are_skipped(tiny_llama: Path, tmp_path: Path) -> None:
    samples = [_chat("q" * 90, "Cut away."), [Message("user", "Hm?")], *SAMPLES[:2]]
    report = _train(tiny_llama, tmp_path, SPEC.model_copy(update={"epochs": 1}), samples=samples)
    assert (report.samples, report.skipped) == (2, 2)
    with pytest.raises(WorkError, match="none of 2 samples has an assistant token"):
        _train(tiny_llama, tmp_path / "none", samples=samples[:2])


REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ '<|start|>' + m.role + '\n' + m.content + END }}{% endfor %}"
)


def _with_template(base: Path, folder: Path, template: str, **tokens: Any) -> Path:
    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)
    return folder


def test_samples_that_the_template_refuses_are_counted_and_never_trained_on(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = _with_template(tiny_llama, tmp_path / "base", REFUSING.replace("END", "'<|stop|>'"))
    spec = SPEC.model_copy(update={"epochs": 1})
    odd = [[Message("system", "s"), *_chat("Why?", "So.")], [Message("system", "t"), *SAMPLES[0]]]
    report = _train(base, tmp_path, spec, samples=[*odd, *SAMPLES[:4]])
    assert (report.samples, report.skipped) == (4, 0)
    assert report.set_aside == {"the chat template refuses it: no system": 2}
    assert read_report(tmp_path / "out") == report
    without = _train(base, tmp_path / "without", spec, samples=SAMPLES[:4])
    assert tuned_digest(tmp_path / "out") != tuned_digest(tiny_llama)
    assert report.log == without.log
    folded = spec.model_copy(update={"system": "fold"})
    report = _train(base, tmp_path / "folded", folded, samples=[*odd, *SAMPLES[:4]])
    assert (report.samples, report.set_aside) == (6, {})
    with pytest.raises(WorkError, match=r"none of 2 samples .*; 2 set aside: the chat template"):
        _train(base, tmp_path / "none", spec, samples=odd)


def test_a_template_that_ends_turns_with_nothing_is_tuned_to_stop_or_refused(
    tiny_llama: Path, tmp_path: Path
) -> None:
    endless = REFUSING.replace("END", "''")
    spec = SPEC.model_copy(update={"epochs": 1})
    base = _with_template(tiny_llama, tmp_path / "base", endless)
    report = _train(base, tmp_path, spec, samples=[_chat("Why?", "So.")])
    assert report.learned_tokens == len("So.") + 1
    dumb = _with_template(tiny_llama, tmp_path / "dumb", endless, eos_token=None)
    with pytest.raises(RequestError, match="fine-tuning: template chat ends answers with nothing"):
        _train(dumb, tmp_path / "other", spec)


def test_a_loss_that_is_not_finite_names_its_step(tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.lm_head.weight.data[0, 0] = float("inf")
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(base)
    with pytest.raises(WorkError, match="the loss of step 1 is not finite"):
        _train(base, tmp_path)
    assert not (tmp_path / "out").exists()


def test_missing_libraries_and_bad_requests_are_one_line(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(RequestError, match=r"pip install 'mona-select\[finetune\]'"):
        _train(tiny_llama, tmp_path)
    with pytest.raises(RequestError, match="batch_size = 4 is no multiple of .* 2 x 4"):
        launch(_job(tiny_llama, tmp_path), 4, lambda steps: None)
    with pytest.raises(RequestError, match="not a tuned model"):
        read_report(tmp_path)


def _job(base: Path, folder: Path, spec: FinetuneSpec = SPEC) -> FinetuneJob:
    write_samples(SAMPLES, folder / "samples.jsonl")
    return FinetuneJob(
        samples=folder / "samples.jsonl",
        base=base,
        spec=spec,
        out=folder / "out",
        scratch=folder / "scratch",
        device="cpu",
    )


def test_two_processes_train_one_model(tiny_llama: Path, tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"epochs": 1, "lora": Lora(rank=4), "batch_size": 8})
    short = spec.model_copy(update={"max_length": 80})
    told: list[int] = []
    job = _job(tiny_llama, tmp_path, short)
    write_samples(SAMPLES[:8], job.samples)
    report = launch(job, 2, told.append)
    assert told == [0, 1]
    # One step over all samples: the loss is that of the whole batch, however it was shared out.
    _train(tiny_llama, tmp_path / "alone", short, samples=SAMPLES[:8])
    alone = read_report(tmp_path / "alone" / "out")
    assert report.losses == [pytest.approx(alone.losses[0], rel=1e-5)]
    assert report.log[0]["tokens"] == alone.log[0]["tokens"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out", "samples.jsonl"]


def test_a_failed_job_of_several_processes_says_why(tiny_llama: Path, tmp_path: Path) -> None:
    job = _job(tiny_llama, tmp_path)
    write_samples([[Message("user", "Hm?")]], job.samples)
    with pytest.raises(WorkError, match="none of 1 samples has an assistant token"):
        launch(job, 2, lambda steps: None)
    assert not job.out.exists()
