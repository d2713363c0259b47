"""What gdmap.ensemble is measured against: the same gradient steps, run by others or written by hand."""
