"""Sampling: sigma grids and solvers, noise, probes, one denoising step and the loop over it.

What every experiment is made of. Functions of arrays, jitted by their callers. No text, no VAE, no
file enters here.
"""
