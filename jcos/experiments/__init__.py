"""Questions of the paper, put to a model: what is run, what is measured, what is drawn.

An experiment enters as a file with its parameters, its cases, a readout on the device and its
measures. Loops over steps, scorers and pages do not.
"""
