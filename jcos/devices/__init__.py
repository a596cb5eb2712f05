"""Devices: the mesh and its axes, partition rules, offloaded weights, the compilation cache.

Knows arrays, pytrees and jax, and nothing of video. What decides *where* an array lies enters here;
what decides *what* it is does not.
"""
