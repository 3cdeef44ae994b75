"""Internal. Runs a model in float64 on weights of one's choice, and keeps every value and call."""
