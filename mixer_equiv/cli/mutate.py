"""`mixer-equiv mutate`: plant every catalogued fault, and show which checks notice it."""

from __future__ import annotations

from typing import Annotated

import typer

from mixer_equiv.cli.exit_status import EXIT_STATUS, report_errors
from mixer_equiv.cli.options import JsonOption
from mixer_equiv.cli.output import check_outputs, show
from mixer_equiv.cli.progress import progress_bar


def mutate(
    seed: Annotated[int, typer.Option(help="Seed of weights and images.")] = 0,
    json_file: JsonOption = None,
) -> None:
    """Plant every catalogued fault in a Mixer, and show which checks notice it, and what verify says."""
    from mixer_equiv.equivalence.faults import kill_matrix
    from mixer_equiv.render.kill_matrix import draw_matrix

    with report_errors():
        check_outputs({"--json": json_file})
        with progress_bar(kill_matrix.count_outcomes()) as step:
            matrix = kill_matrix.mutate(seed=seed, on_step=step)
        show(draw_matrix(matrix), matrix.to_dict(), json_file)
    raise typer.Exit(0 if matrix.all_named else EXIT_STATUS["different"])
