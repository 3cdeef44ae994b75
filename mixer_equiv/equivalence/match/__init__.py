"""Internal. Find a program in the trace of another by values. It knows operations, and no Mixer.

Start at `program_search.find_program`. `move_generator` lists the ways to take a step, `parameter_search` finds the
trace's parameters for it (`parts` an array in several values, `bias_rows` a bias within a kernel), `step_variants` lists
known other forms of an operation, and `search_state` says how far the search has come.
"""
