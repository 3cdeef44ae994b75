"""`mixer-equiv bench`: time Mixers side by side, each proven right first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixer_equiv.cli.exit_status import EXIT_STATUS, report_errors
from mixer_equiv.cli.options import JsonOption, parse_kwargs
from mixer_equiv.cli.output import check_outputs, show, warn
from mixer_equiv.cli.progress import prints_on_stderr, progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mixer_equiv.bench.cells import Cell


def bench(
    variant: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Sizes: B/16, S/32, ... Repeatable; S/32 if not given.")
    ] = None,
    kwargs: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Other MixerConfig fields, of all programs: '{\"num_blocks\": 2}'."),
    ] = None,
    program: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What is timed: torch, timm, ... Repeatable; all.")
    ] = None,
    formulation: Annotated[
        list[str] | None,
        typer.Option(metavar="P,T,C", help="Of our models, too: conv,matmul,linear. Repeatable, or 'all'."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(metavar="DTYPE", help="float32, bfloat16, float64, on cuda float16, tf32. Repeatable; float32."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(metavar="N", help="Images a call. Repeatable; 1 and 8.")] = None,
    mode: Annotated[
        list[str] | None, typer.Option(metavar="MODE", help="inference or training. Repeatable; inference.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(metavar="N", help="Cores for both frameworks; all.")] = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="Interleaved rounds, at least 10.")] = 10,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="What ratios are to; timm if it is timed, else the first.")
    ] = None,
    gemm: Annotated[int, typer.Option(metavar="N", help="Side of the matrices whose product is the peak.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of weights, images and the order of turns.")] = 0,
    json_file: JsonOption = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write CSV, too.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Markdown, too.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="A plot: SVG and PNG, both.")] = None,
) -> None:
    """Time Mixers side by side: ours, timm's, the tutorial's, lucidrains' and the official one.

    Each is proven right first, in the same process; one that is not is refused, and the exit status is 1.
    """
    from mixer_equiv.bench import export, plots
    from mixer_equiv.bench.contestants import make_entries, names_running_in, parse_formulations
    from mixer_equiv.bench.measurement import measure_cells
    from mixer_equiv.render.bench import Tables

    with report_errors():
        check_outputs({"--json": json_file, "--csv": csv_file, "--markdown": markdown_file, "--plot": plot_file})
        if plot_file is not None:
            plots.check_picture_path(plot_file)
        cells = _cells(variant or ["S/32"], parse_kwargs(kwargs) or {}, dtype, batch, device, mode)
        entries = list(make_entries(program or names_running_in(cells), parse_formulations(formulation or [])))
        with progress_bar(len(cells) * (len(entries) + 1)) as step, prints_on_stderr():
            result = measure_cells(
                cells,
                entries,
                baseline="timm" if baseline is None and "timm" in map(str, entries) else baseline,
                rounds=rounds,
                threads=threads,
                seed=seed,
                gemm=gemm,
                on_step=step,
            )
        plain = export.to_dict(result)
        others = {
            "--csv": (csv_file, lambda: export.to_csv(plain)),
            "--markdown": (markdown_file, lambda: export.to_markdown(plain)),
        }
        show(Tables(plain), plain, json_file, others)
        if plot_file is not None and any(row["ms"] for row in plain["rows"]):
            plots.plot(plain["rows"], plot_file, plain["baseline"])
        elif plot_file is not None:
            warn(f"{plot_file} is not written: all were refused")
    raise typer.Exit(EXIT_STATUS["different"] if result.refusals else 0)


def _cells(
    variants: Sequence[str],
    fields: dict[str, Any],
    dtypes: Sequence[str] | None,
    batches: Sequence[int] | None,
    device: str,
    modes: Sequence[str] | None,
) -> list[Cell]:
    """The cells that options ask for; `fields` replace those of the published variants."""
    from mixer_equiv.bench.cells import make_cells
    from mixer_equiv.config import MixerConfig

    published = [MixerConfig.from_name(name).to_dict() for name in variants]
    configs = [MixerConfig.from_dict({**values, **fields}) for values in published]
    return list(make_cells(configs, dtypes or ["float32"], batches or [1, 8], device, modes or ["inference"]))
