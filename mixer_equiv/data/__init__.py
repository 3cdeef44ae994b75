"""Internal. A Mixer trained on handwritten digits, and the digits that were held out. Start at `digits`."""
