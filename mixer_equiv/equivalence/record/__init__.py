"""Internal. Run a model of any framework in float64 on given weights, and keep every value.

`jax` and `torch` record; `trace` is the result. `precision`, `randomness` and `state` see to it that
the run is exact, repeatable, and leaves the model and the process as they were. Nothing here knows a Mixer.
"""
