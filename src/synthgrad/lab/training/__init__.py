"""Training runs: their description (`run`), tasks (`tasks`), methods (`methods`), and the training loop (`driver`)."""
