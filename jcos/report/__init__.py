"""Results become pages: self-contained HTML that opens from disk, without network.

Reads folders that commands wrote and shows what is in them. Nothing here computes a result.
"""
