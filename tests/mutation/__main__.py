"""`python -m tests.mutation`: a seeded sample of mutants, and those that no test notices, each with its diff."""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.mutation.forks import Fork, Order, clone, plant, preload
from tests.mutation.mutants import MODULES, ROOT, Mutant, equivalent, sample

AT_LEAST = 0.95  # of the mutants that are not the same program


def judged(chosen: Sequence[Mutant], jobs: int, limit: float, record: Path | None) -> dict[str, str]:
    """What became of each mutant, by name: "killed", "timed out" or "survived".

    What `record` has already, a line for each mutant, is not run again.
    """
    results = _recorded(record)
    with tempfile.TemporaryDirectory() as folder:
        trees = [clone(Path(folder) / str(i)) for i in range(jobs)]
        waiting = [mutant for mutant in chosen if mutant.name not in results][::-1]
        orders = _measured(trees[0], {MODULES[mutant.module] for mutant in waiting}, limit)
        running: dict[int, tuple[Fork, Mutant]] = {}
        while waiting or running:
            while waiting and trees:
                mutant, tree = waiting.pop(), trees.pop()
                plant(tree, mutant)
                order = orders[MODULES[mutant.module]]
                fork = Fork(tree, MODULES[mutant.module], order, 60 + round(4 * order.total))
                running[fork.pid] = fork, mutant
            pid, status = _next_to_end(running)
            fork, mutant = running.pop(pid)
            trees.append(fork.tree)
            results[mutant.name] = fork.outcome(status)
            fork.order.kills.update(fork.seen()["failed"])
            _keep(record, mutant.name, results[mutant.name])
            _progress(len(chosen) - len(waiting) - len(running), len(chosen), results[mutant.name], mutant)
    return {mutant.name: results[mutant.name] for mutant in chosen}


def _measured(tree: Path, suites: Iterable[tuple[str, ...]], limit: float) -> dict[tuple[str, ...], Order]:
    """For each suite of tests, which must pass on the code as it is, their order by how long they take."""
    orders = {}
    for suite in sorted(suites):
        fork = Fork(tree, suite, Order(float("inf")), 3600, keep_bytecode=True)
        _, status = os.waitpid(fork.pid, 0)
        if fork.outcome(status) != "survived":
            raise SystemExit(f"{', '.join(suite)} fail as they are:\n{(tree / 'output.txt').read_text()[-4000:]}")
        orders[suite] = Order(limit, fork.seen()["seconds"])
    return orders


def _next_to_end(running: Mapping[int, tuple[Fork, Mutant]]) -> tuple[int, int]:
    """The process and wait status of a fork that has ended; one that waits for ever is ended."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            return pid, status
        for fork, _ in running.values():
            if time.monotonic() - fork.started > 20 * fork.cpu_seconds:
                fork.stop()
        time.sleep(0.02)


def _recorded(path: Path | None) -> dict[str, str]:
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    return {entry["name"]: entry["outcome"] for entry in map(json.loads, lines)}


def _keep(path: Path | None, name: str, outcome: str) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps({"name": name, "outcome": outcome}) + "\n")


def _progress(done: int, count: int, outcome: str, mutant: Mutant) -> None:
    if outcome == "survived":
        print(f"{done} of {count} survived: {mutant.name}", file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        print(f"{done} of {count}", end="\r", file=sys.stderr)


def table(chosen: Sequence[Mutant], results: Mapping[str, str], same: Mapping[str, str]) -> tuple[str, float]:
    """A row for each module and one for all, and the share killed of those that are not the same program."""
    columns = "killed", "timed out", "survived", "equivalent"
    counts: dict[str, collections.Counter[str]] = {}
    for mutant in chosen:
        outcome = results[mutant.name]
        outcome = "equivalent" if outcome == "survived" and mutant.name in same else outcome
        counts.setdefault(mutant.module, collections.Counter())[outcome] += 1
    counts["all"] = sum(counts.values(), collections.Counter())
    head = f"{'module':<40}{'mutants':>10}" + "".join(f"{column:>12}" for column in columns)
    rows = [
        f"{module:<40}{sum(count.values()):>10}" + "".join(f"{count[column]:>12}" for column in columns)
        for module, count in counts.items()
    ]
    noticed = counts["all"]["killed"] + counts["all"]["timed out"]
    return "\n".join([head, *rows]), noticed / max(noticed + counts["all"]["survived"], 1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--sample", type=int, default=400, help="how many mutants of all modules; 0 for every one")
    parser.add_argument("--seed", type=int, default=0, help="which sample")
    parser.add_argument("--module", action="append", choices=MODULES, help="this one alone; may be given several times")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds; tests that take longer are left out")
    parser.add_argument("--record", type=Path, help="a file of outcomes, added to; what it has is not run again")
    options = parser.parse_args(arguments)
    preload()
    sources = {module: (ROOT / module).read_text(encoding="utf-8") for module in options.module or MODULES}
    chosen = sample(sources, options.sample, options.seed)
    results, same = judged(chosen, options.jobs, options.limit, options.record), equivalent()
    text, share = table(chosen, results, same)
    print(text)
    for mutant in chosen:
        if results[mutant.name] == "survived" and mutant.name not in same:
            print(f"\nsurvived: {mutant.name}")
    print(f"\n{100 * share:.1f}% noticed; at least {100 * AT_LEAST:.0f}% must be")
    return 0 if share >= AT_LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
