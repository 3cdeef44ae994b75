"""Internal. Pickles of weights, read without importing or calling anything: `machine` runs them, `constructors` makes
the few kinds of objects that weights are of (`arrays`, `tensors`), `tree` gives nested arrays, and `file` is the format
of a bare pickle."""
