"""Load and save weights: the package's own world format and MAGI-1's layout."""
