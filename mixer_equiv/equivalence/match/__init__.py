"""Internal. Finds one program in the trace of another by values. It knows operations and no Mixer."""
