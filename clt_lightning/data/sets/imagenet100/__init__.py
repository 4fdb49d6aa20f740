"""ImageNet-100."""
