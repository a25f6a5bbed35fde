"""Reports: `plan --html` and `stats --html`, self-contained pages with plots.

page      the frame: sections, tables, plots as SVG
pictures  images as the tower saw them, and the norms of their tokens
gallery   some samples as figures
plan_page, stats_page  the two pages
"""
