"""Arrays of any framework and of files, and their bytes. Internal; knows no Mixer."""
