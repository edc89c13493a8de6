"""A folder's tokenizer: read, written, and given other tokens.

It knows strings and numbers of tokens, and of no tensor; the `tokenizers` library is imported where
it is used.
"""
