"""The report: draws an evaluation, with its charts, as one HTML page."""
