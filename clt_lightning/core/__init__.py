"""What every part may use: the user's mistakes, seeds, files. Imports nothing of the package, and neither torch."""
