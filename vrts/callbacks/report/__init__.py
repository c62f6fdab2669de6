"""The page that a prediction run leaves: ``report.html``."""
