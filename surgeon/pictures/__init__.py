"""Looking instead of reading: pages of HTML, and figures that matplotlib draws.

Pages need nothing but a browser: no scripts, nothing from elsewhere. What they show are names of
files and tensors, which may hold anything, so every text is escaped where it becomes HTML.
"""
