"""The report of a prediction run: ``report.html``."""
