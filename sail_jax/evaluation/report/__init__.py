"""The report: an evaluation as one HTML page with its charts."""
