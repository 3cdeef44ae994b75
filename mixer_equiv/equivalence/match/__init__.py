"""Internal. Find a program in the trace of another by values. It knows operations, and no Mixer.

Start at `program_search.find_program`. `moves` generates the ways to take a step, `parameters` finds the trace's
parameters for it, `variants` lists known other forms of an operation, and `replay` is the search's state.
"""
