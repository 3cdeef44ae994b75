"""Internal. Any two models: which parameter of one is which of the other, found by value.

A, the reference, is run step by step on parameters of B. Where a step needs parameters that are not known yet, those of
B are taken with which its result is a value that B has. Start at `search.find_correspondence`; `table` is its result.
"""
