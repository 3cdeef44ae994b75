"""The page of the command line, written from the typer program."""

from __future__ import annotations

import re
from typing import Any

import typer.main

from docs.build.markdown import anchor, block, code, plain, table
from mixer_equiv.cli import app
from mixer_equiv.cli.exit_status import BAD_INPUT, EXIT_STATUS

# At the start of a paragraph of help: its lines stay as they are.
_AS_IT_STANDS = "\b\n"


def write() -> str:
    """The page in Markdown: the exit statuses, then each command with its arguments and options."""
    program: Any = typer.main.get_command(app)
    context = program.make_context("mixer-equiv", [], resilient_parsing=True)
    rows = [
        (f"[{code(f'mixer-equiv {name}')}](#{name})", _first_line(program.commands[name])) for name in program.commands
    ]
    lines = [
        "# Command line\n",
        f"{plain(program.help)}\n",
        table(("command", "purpose"), rows),
        *_parameters(program, context, "mixer-equiv"),
        "## Exit status { #exit-status }\n",
        table(("exit status", "meaning"), _exit_statuses(program.epilog)),
        table(
            ("verdict of `verify`", "exit status"), [(code(name), str(status)) for name, status in EXIT_STATUS.items()]
        ),
    ]
    for name, command in program.commands.items():
        own = command.make_context(name, [], parent=context, resilient_parsing=True)
        lines += [f"## mixer-equiv {name} {{ #{name} }}\n", *_paragraphs(command.help)]
        usage = " ".join(command.collect_usage_pieces(own))
        lines += [block(f"{own.command_path} {usage}"), *_parameters(command, own, name), *_paragraphs(command.epilog)]
    return "\n".join(lines)


def _first_line(command: Any) -> str:
    return plain(command.help.split("\n\n")[0])


def _exit_statuses(epilog: str) -> list[tuple[str, str]]:
    """Each status and its meaning, from the line of help that lists them."""
    listed = re.findall(r"(\d) (.*?)(?:, (?=\d)|\.$)", " ".join(epilog.split()))
    if {int(status) for status, _ in listed} != {*EXIT_STATUS.values(), BAD_INPUT}:
        raise ValueError(f"the help of mixer-equiv does not list the exit statuses: {epilog!r}")
    return [(status, plain(meaning)) for status, meaning in listed]


def _parameters(command: Any, context: Any, name: str) -> list[str]:
    """Tables of the arguments and of the options, each option with a place to link to."""
    tables = []
    for kind in ("argument", "option"):
        rows = []
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if parameter.param_type_name == kind and record is not None:
                place = anchor(f"{name}-{parameter.name.replace('_', '-')}")
                rows.append((place + code(record[0]), plain(record[1])))
        if rows:
            tables.append(table((kind, "meaning"), rows))
    return tables


def _paragraphs(text: str | None) -> list[str]:
    """The paragraphs of help; one whose lines stay as they are is a block of code below its title."""
    paragraphs = []
    for paragraph in (text or "").split("\n\n"):
        if paragraph.startswith(_AS_IT_STANDS):
            title, _, lines = paragraph.removeprefix(_AS_IT_STANDS).partition("\n")
            paragraphs += [f"{plain(title)}\n", block(_without_indent(lines))]
        elif paragraph.strip():
            paragraphs.append(f"{plain(paragraph)}\n")
    return paragraphs


def _without_indent(lines: str) -> str:
    return "\n".join(line.removeprefix("  ") for line in lines.splitlines())
