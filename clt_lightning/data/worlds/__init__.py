"""Made data whose truth is known."""
