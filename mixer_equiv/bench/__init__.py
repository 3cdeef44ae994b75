"""How fast Mixers are: programs timed side by side, each proven right in the same process before it is timed.

cases.py      what is timed: a cell (sizes, dtype, batch, device, mode) and its programs
programs.py   the programs by name: ours, and those of others
peers.py      the Mixers of others, rebuilt; timm's own
in_torch.py, in_jax.py   a program of a cell as something to call
proof.py      whether what it computes is right
clock.py      rounds in random order, medians and intervals
machine.py    what it ran on, with how many threads; memory
bench.py      all of it in one run
page.py, plots.py   the table, files and pictures
"""
