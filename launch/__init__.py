"""Command-line programs; the only package that imports gin and absl.flags."""
