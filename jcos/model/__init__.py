"""The network: layers, attention and its back ends, the DiT, the VAEs, the text encoder.

Pure functions of weights and arrays, written for one video without a batch axis. Nothing here reads
a file of weights, draws noise or loops over denoising steps.
"""
