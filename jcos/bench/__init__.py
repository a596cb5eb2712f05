"""VBVR-Bench: a folder of samples in; videos and scores out, of any model and intervention."""
