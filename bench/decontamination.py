"""How many test rows are found in a pool, how many clean rows are dropped, and how fast.

    python -m bench.decontamination [--data ../shared/data] [--rows 20000]

Every test row of six benchmarks is put into pool rows in the ways a copy stands in real pools,
and sought with the index of its own task. Pools that are nearly clean are searched for all tasks
at once: what is reported there is dropped, rightly or not. So is a Japanese pool written here,
whose rows begin like the test rows of a Japanese task. Then the rows a second over some rows of
Alpaca, of one CPU's time.

The files are those under `targets` and `pools` of the folder `--data`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from mona.decontamination import HeldOutIndex, find_all, fold, words_of
from mona.files import DataFile
from mona.spec import TargetReader
from mona.targets import read_target

TARGETS: dict[TargetReader, str] = {
    "mmlu": "mmlu/test/*.csv",
    "tydiqa": "tydiqa_goldp/*/*_dev.json",
    "mbpp": "mbpp/*.json*",
    "bbh": "bbh/bbh/*.json",
    "gsm8k": "gsm8k/test.jsonl",
    "humaneval": "humaneval/*.jsonl.gz",
}
POOLS = {
    "alpaca": "alpaca/*.json",
    "dolly": "dolly/**/*.json*",
    "alpaca_zh": "alpaca_zh/*.json",
}
JAPANESE_OPENING = "次の質問を読んで、理由も含めて日本語で簡潔に答えてください。"

Row = list[str]


def wrappings() -> dict[str, Callable[[str], Row]]:
    """The ways in which a question stands in a pool row, given as its messages."""
    options = "\nA. the first\nB. the second\nC. neither\nD. both\nAnswer:"
    return {
        "verbatim": lambda question: [question, "B"],
        "behind Question:": lambda question: [f"Question: {question}\nAnswer:", "B"],
        "in a sentence": lambda question: [
            f"My sister was asked {question} and she could not say, can you?",
            "I can.",
        ],
        "with options": lambda question: [
            f"Choose the best answer and explain it. {question}{options}",
            "B",
        ],
        "lower, signs to spaces": lambda question: [without_signs(question.lower(), " "), "B"],
        "lower, without signs": lambda question: [without_signs(question.lower(), ""), "B"],
        "only letters": lambda question: [re.sub(r"[^\w\s]", " ", question.lower()), "B"],
        "a later turn": lambda question: [
            "You are helpful.",
            "Hello, who are you?",
            "An assistant. What can I do?",
            f"Well. {question} Thanks!",
            "B",
        ],
    }


def without_signs(text: str, instead: str) -> str:
    """The text with something else for everything but letters, digits and white space."""
    return "".join(
        c if c.isalnum() or c.isspace() or unicodedata.category(c)[0] in "MC" else instead
        for c in text
    )


def read_pool(folder: Path, pattern: str) -> Iterator[Row]:
    """The rows of files in the Alpaca form: the user's turn and the answer."""
    for path in sorted(folder.glob(pattern)):
        with path.open(encoding="utf-8") as file:
            records = map(json.loads, file) if path.suffix == ".jsonl" else json.load(file)
            for record in records:
                user = "\n".join(filter(None, [record["instruction"], record.get("input")]))
                yield [user, record["output"]]


def japanese(rows: int, seed: int) -> list[str]:
    """Texts that begin alike; the names in what follows are drawn from millions."""
    draw = random.Random(seed)
    kana = (
        "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワ"
    )

    def name() -> str:
        return "".join(draw.choices(kana, k=4))

    return [
        f"{JAPANESE_OPENING}{name()}は朝早く{name()}の港で{name()}を{draw.randint(2, 99)}個数え、"
        f"夕方に{name()}の橋の上で{name()}と会いました。合計はいくつですか。"
        for _ in range(rows)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rows", type=int, default=20_000, help="of Alpaca, for the speed")
    options = parser.parse_args()
    indexes: dict[str, HeldOutIndex] = {}
    questions: set[str] = set()
    ways = wrappings()
    print("share of test rows found, %")
    print(f"{'':<10} {'rows':>6} " + " ".join(f"{name:>22}" for name in ways))
    for reader, pattern in TARGETS.items():
        paths = sorted((options.data / "targets").glob(pattern))
        rows = read_target(reader, [DataFile(path) for path in paths])
        made = HeldOutIndex.build(
            (f"{row.file}:{row.row}", row.subtask, row.question) for row in rows
        )
        indexes[reader] = made
        questions.update(" ".join(words_of(fold(row.question))) for row in rows)
        shares = []
        for wrap in ways.values():
            matches = made.find(wrap(row.question) for row in rows)
            shares.append(100 * sum(match is not None for match in matches) / len(rows))
        print(f"{reader:<10} {len(rows):>6,} " + " ".join(f"{share:>22.2f}" for share in shares))

    print("\nrows of pools dropped, and those of them whose question is a test row's, whole")
    for name, pattern in POOLS.items():
        pool = list(read_pool(options.data / "pools", pattern))
        hits = [row for row, found in zip(pool, find_all(indexes, pool), strict=True) if found]
        same = sum(" ".join(words_of(fold(row[0]))) in questions for row in hits)
        share = 100 * len(hits) / len(pool)
        print(f"{name:<10} {len(hits):>4} of {len(pool):>6,} ({share:.3f} %), {same}")
    for size in (4, 400):
        task = HeldOutIndex.build((str(i), "ja", text) for i, text in enumerate(japanese(size, 1)))
        pool = [[text, "三つです。"] for text in japanese(20_000, 2)]
        dropped = sum(match is not None for match in task.find(pool))
        share = 100 * dropped / len(pool)
        print(f"{'Japanese':<10} {dropped:>4} of {len(pool):>6,} ({share:.3f} %), {size} test rows")

    pool = list(read_pool(options.data / "pools", POOLS["alpaca"]))[: options.rows]
    started = time.process_time()
    for _ in find_all(indexes, pool):
        pass
    seconds = time.process_time() - started
    print(f"\n{len(pool) / seconds:,.0f} rows a second, {len(pool):,} rows of Alpaca, six targets")


if __name__ == "__main__":
    main()
