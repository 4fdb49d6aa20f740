"""Own images: a folder, a zip or a tar of them."""
