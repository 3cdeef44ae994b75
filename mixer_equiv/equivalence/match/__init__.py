"""Internal. Find a program in the trace of another by values. It knows operations, and no Mixer.

Start at `search.find_program`. `moves` are the ways to take a step, `parameters` finds the trace's
parameters for it, `variants` are the tables of what else code computes, and `replay` is how far it came.
"""
