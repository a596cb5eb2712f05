"""Weights on disk: PyTorch files read without PyTorch, names and layouts of the releases, Orbax.

A new release enters as rows of a table (`names`, `layouts`). Nothing here runs a model.
"""
