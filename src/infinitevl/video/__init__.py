"""Video in: `sources` opens anything as timed frames, `preprocess` turns frames into patches.

Nothing is imported here: PyAV comes with `sources`, torch with `preprocess`.
"""
