"""Internal. Runs both sides, compares them, decides and explains."""
