"""Conversion of every architecture of torchvision and timm, checked network by network."""
