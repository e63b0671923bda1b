"""The style sheet of the report, and the colours of its charts."""

from pathlib import Path

# Placeholder in charts for the colour of the page's text, which replaces it; nothing else uses this colour.
INK = "#010203"
# Distinct with any colour vision, and legible on light and dark backgrounds (after Okabe and Ito).
LINES = ("#2f7fd6", "#e08214", "#1b9e77", "#c2559d", "#8c6bd1", "#b8860b", "#3aa6b9", "#d1495b")
GREY = "#8f9baa"

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
