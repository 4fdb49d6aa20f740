"""Training a transcoder on a frozen backbone: the step, its settings, its losses and its optimizers."""
