"""The embedded demo."""
