"""Tests of the repository itself: layers, pages, links, the gallery, the package."""
