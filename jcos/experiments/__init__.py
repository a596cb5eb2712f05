"""Questions to a model, one file each: what is run, what is measured."""
