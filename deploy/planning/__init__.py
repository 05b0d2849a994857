"""`shipway plan`: what a version would change, said before it gets any traffic."""
