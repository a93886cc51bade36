"""How good the images are, and how far the confidence can be trusted: reports, calibration, and the page."""
