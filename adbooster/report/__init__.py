"""What a person sees of a run: the uplift, report.html (one static page made of page/ and the run's data), and what a picture is.

Enters: tables, candidates, evaluation and feeds of a run. Leaves: runs/<run_id>/gallery.json, delivery.json and report.html.
All text of feeds and cohorts is data: it never becomes markup, and the page makes no network request.
"""

__all__ = ["audit", "contact_sheet", "delivery", "fsck", "gallery", "inspect", "page", "repair", "uplift"]
