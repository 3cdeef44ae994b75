"""`python -m mixer_equiv`: the command line."""

from mixer_equiv.cli import app

app(prog_name="mixer-equiv")
