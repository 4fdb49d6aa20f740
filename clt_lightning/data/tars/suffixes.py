"""The suffixes of members that are read, and nothing else: both sides need them, and the writing one without torch."""

IMAGE_SUFFIXES = ("webp", "png", "jpg", "jpeg", "bmp", "tif", "tiff", "ppm", "gif")
WANTED = frozenset((*IMAGE_SUFFIXES, "cls", "group", "npy", "txt"))
