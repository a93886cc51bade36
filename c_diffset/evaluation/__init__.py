"""How good are the images: metrics with their conventions, and the report."""
