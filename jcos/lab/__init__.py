"""The laboratory: small tasks with exact scorers, measures with intervals, the ideal denoiser,
training of the small model.

What turns trajectories into numbers enters here; drawing, tables and folders do not.
"""
