"""Training runs: what a run is (`run`), what it trains (`tasks`), how (`methods`), and the loop of all (`driver`)."""
