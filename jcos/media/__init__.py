"""Pictures and videos in and out, and first frames as the reference codes prepare them.

Arrays of uint8 pixels on one side, files on the other. Nothing here knows a model.
"""
