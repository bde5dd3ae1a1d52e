"""A state's report: one self-contained HTML file.

:func:`gather` collects what there is to say of a learner; :func:`render` turns that into a page and reads nothing else.
"""

from sapwood.report.content import MaskSample, ReportData, ReportTask, Routes, Sample, SiteRoute
from sapwood.report.gather import gather
from sapwood.report.page import render

__all__ = ["MaskSample", "ReportData", "ReportTask", "Routes", "Sample", "SiteRoute", "gather", "render"]
