"""Layer 5: charts and pages for people. Entry points: ``text_chart.chart``, ``svg_chart.chart``, ``html_page.page``."""
