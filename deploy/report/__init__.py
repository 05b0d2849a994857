"""`shipway report`: how a model served over a window, in one HTML file that needs no network."""
