"""Print the verdict on every case beside the one that is right: `python -m tests.soundness [wrong] [right] [NAME ...]`.

A NAME is a part of the names of cases, of which alone the verdicts are asked for. The exit status is 1 if any is not as
written.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator, Sequence

from tests.soundness.cases import Answer, Case, judge

TABLES = {"wrong": ("wrong_torch", "wrong_flax"), "right": ("right_torch", "right_flax")}


def cases_of(tables: Sequence[str]) -> Iterator[Case]:
    for table in tables:
        for module in TABLES[table]:
            yield from importlib.import_module(f"tests.soundness.{module}").CASES


def row_of(answer: Answer, seconds: float) -> str:
    case, complaints = answer.case, "; ".join(answer.complaints)
    mark = "-" if complaints else "+"
    detail = f"  [{answer.text.splitlines()[0][:160]}]" if answer.result in ("refused", "crashed") else ""
    return (
        f"{mark} {case.name:<58} {'|'.join(case.verdicts):<34} {answer.result:<16} {seconds:5.1f} s  "
        f"{', '.join(answer.causes)}{f'  <- {complaints}' if complaints else ''}{detail}"
    )


def judged(cases: Sequence[Case]) -> Iterator[Answer]:
    for case in cases:
        began = time.perf_counter()
        answer = judge(case)
        print(row_of(answer, time.perf_counter() - began), flush=True)
        yield answer


def totals(answers: Sequence[Answer]) -> str:
    return (
        f"{sum(not answer.complaints for answer in answers)} of {len(answers)} as written; "
        f"{sum(answer.is_falsely_equivalent for answer in answers)} falsely equivalent, "
        f"{sum(answer.is_falsely_different for answer in answers)} falsely different or inexpressible, "
        f"{sum(answer.result == 'crashed' for answer in answers)} crashed"
    )


def main(arguments: Sequence[str]) -> int:
    tables = [name for name in arguments if name in TABLES]
    parts = [name for name in arguments if name not in TABLES]
    cases = [c for c in cases_of(tables or list(TABLES)) if not parts or any(part in c.name for part in parts)]
    answers = list(judged(cases))
    print(totals(answers))
    return int(any(answer.complaints for answer in answers))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
