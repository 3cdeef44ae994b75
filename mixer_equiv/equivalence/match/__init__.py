"""Internal. Find a program in the trace of another by values. It knows operations, and no Mixer.

Start at `program_search.find_program`. `move_generator` lists the ways to take a step, `parameter_search` finds the
trace's parameters for it (`parts` arrays that the trace has in several values, `bias_rows` biases within kernels),
`step_variants` lists known other forms of an operation, and `search_state` says how far the search has come.
"""
