"""Terms that any strategy takes: further parts of its loss."""
