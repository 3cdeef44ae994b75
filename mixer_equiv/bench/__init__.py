"""Internal. Time Mixers side by side; each is checked in the same process before it is timed.

cells.py          a cell: sizes, dtype, batch, device and mode
contestants.py    the Mixers by name, ours and others'; an entry is one of them in one formulation
peers_torch.py, peers_flax.py   the Mixers of others, rebuilt; timm's own
calls.py          the inputs, and an entry as something to call
torch_calls.py, jax_calls.py    the calls of each framework
correctness.py    whether a call computes the right thing
timing.py         rounds in random order, medians and intervals
environment.py    processor, versions and threads; the memory of a call
measurement.py    all of it in one run: start reading here
export.py, plots.py   results as JSON, CSV, Markdown and pictures; tables for a terminal are in `render.bench`
lines.py, line_labels.py   the lines of a plot, and the labels at their ends
"""
