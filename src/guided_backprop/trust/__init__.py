"""How far a map can be believed: sanity, convergence, how alike maps are."""
