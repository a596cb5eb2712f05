"""Results become pages: self-contained HTML that opens from disk, without network."""
