"""How large things may be. What is larger is refused, or counted as a bad sample, before memory is taken for it."""

MAX_PIXELS = 89_478_485
"""Pixels of an image (268 MB as RGB); the largest of ImageNet has 61 million. `max_pixels` of the data modules."""

PILLOW_PIXELS = 2 * MAX_PIXELS
"""What Pillow itself opens at most."""

MAX_MEMBER_BYTES = 1 << 28
"""Bytes of a tar's member that we read: image, label, captions. Others (videos, archives) are passed over."""

MAX_HEADER_BYTES = 1 << 20
"""Bytes of an extended header (long names, PAX records) of a tar's member."""

MAX_TEXT_BYTES = 1 << 26
"""Bytes of a text file at an address (class names, counts)."""

MAX_SHARDS = 1_000_000
"""Tars of a split, by `nshards.txt` or by the braces of a pattern."""
