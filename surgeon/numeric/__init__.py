"""Arrays in, arrays out: dtypes, selection, quantiles, Gram matrices, interpolation.

No names, no files and no policy.
"""
