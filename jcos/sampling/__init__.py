"""Sampling: sigma grids and solvers, noise, probes, one denoising step, traces.

What every experiment is made of. Functions of arrays, jitted by their callers; `jcos.loop` calls
the step. No text and no VAE enters here; of files only traces (`Trace.save`), and noise.
"""
