"""VBVR-Bench: a folder of samples in; videos and scores out, of any model and intervention.

Knows the benchmark's layout and its official scorer. How a video is made does not enter here.
"""
