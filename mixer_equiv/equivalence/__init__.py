"""Internal. Whether two models are the same function, and if not, where and why they part.

Start at `verify.verify` and `porting.port`. `record` runs a model and keeps every value, `match` finds a program in
what was recorded, `mixer` knows the Mixer's programs, `sides` are the two that are compared, `judge` decides and
explains, and `faults` has the catalogue of faults and plants them. `report` is the result.
"""
